"""Data sets with boxes: PASCAL VOC and what has its file layout, and `discs`, which is drawn.

A label is (M, 5): for each box its class, from 1, and its corners (left, top, right, bottom) as
fractions of the image; unused rows are zero. Images are squashed to squares.
"""

import hashlib
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from iekd.data.augment import Draws
from iekd.data.facts import FACTS
from iekd.data.readers import Raw
from iekd.errors import DataError

# Where the three folders of VOC's layout are in the folder of a data set, and what is for training.
# The official validation split comes first: `validation_images` takes the first images.
PLACES = {"bccd": ("",), "voc": ("VOCdevkit/VOC2007", "VOCdevkit/VOC2012")}
TRAINING = ("val", "train")
FOLDERS = ("Annotations", "ImageSets", "JPEGImages")
WAYS = {
    "bccd": "`git clone https://github.com/Shenggan/BCCD_Dataset`, and call its folder BCCD `bccd`",
    "voc": "torchvision.datasets.VOCDetection(FOLDER, year, image_set, download=True) for the "
    "years 2007 (trainval and test) and 2012 (trainval) makes FOLDER/VOCdevkit",
}
# For `discs`.
SIDE, DISCS, COUNTS = 64, 4, (300, 100)


def has_files(name: str, folder: Path) -> bool:
    """Whether a folder holds a data set."""
    places = [folder / place / each for place in PLACES[name] for each in FOLDERS]
    return all(place.is_dir() for place in places)


def ways_out(name: str) -> str:
    """What to do if no folder has the data set."""
    return (
        f"Name a folder that holds {name} (--root or IEKD_DATA): {WAYS[name]}; or use the data set "
        "discs, which needs no files."
    )


def read(name: str, folder: Path, side: int) -> Raw:
    """The whole data set at `side` x `side` pixels, each the mean of its area; the checksum is that
    of the files. Raises `DataError` for a file that cannot be read.
    """
    digest, pixels, found = hashlib.sha256(), [], []
    for splits in (TRAINING, ("test",)):
        files = list(_listed(name, folder, splits))
        images, labels = np.empty((len(files), 3, side, side), np.uint8), []
        for image, (picture, annotation) in zip(images, files, strict=True):
            try:
                digest.update(picture.read_bytes() + annotation.read_bytes())
                labels.append(_boxes(annotation, FACTS[name].boxes))
                with Image.open(picture) as opened:
                    square = opened.convert("RGB").resize((side, side), Image.Resampling.BOX)
            except (OSError, ValueError, AttributeError, ElementTree.ParseError) as error:
                raise DataError(
                    f"{annotation}, or its image: cannot be read ({error}). Get {name} again."
                ) from None
            image[:] = np.asarray(square).transpose(2, 0, 1)
        pixels.append(torch.from_numpy(images))
        found.append(labels)
    most = max(len(boxes) for labels in found for boxes in labels)
    train, test = (_padded(labels, most) for labels in found)
    return Raw(pixels[0], train, pixels[1], test, None, digest.hexdigest()[:16])


def _listed(name: str, folder: Path, splits: tuple[str, ...]) -> Iterator[tuple[Path, Path]]:
    """Image and annotation of every image of some splits; VOC 2012 has no public test split."""
    for split in splits:
        for place in PLACES[name]:
            names = folder / place / "ImageSets" / "Main" / f"{split}.txt"
            if split == "test" and place.endswith("2012"):
                continue
            if not names.is_file():
                raise DataError(f"{names}: is missing. Get {name} again: {WAYS[name]}.")
            for each in names.read_text().split():
                home = folder / place
                yield home / "JPEGImages" / f"{each}.jpg", home / "Annotations" / f"{each}.xml"


def _boxes(annotation: Path, classes: tuple[str, ...]) -> list[list[float]]:
    """Class and corners of every box of an image, except those without area (BCCD has two) and
    those that VOC calls difficult.
    """
    root, found = ElementTree.parse(annotation).getroot(), []
    size = [float(root.findtext(f"size/{side}", "")) for side in ("width", "height")]
    for thing in root.iter("object"):
        corners = ("xmin", "ymin", "xmax", "ymax")
        left, top, right, bottom = (float(thing.findtext(f"bndbox/{c}", "")) for c in corners)
        if right > left and bottom > top and thing.findtext("difficult", "0") != "1":
            label = 1 + classes.index(thing.findtext("name", "").lower())
            box = [left / size[0], top / size[1], right / size[0], bottom / size[1]]
            found.append([label, *box])
    return found


def _padded(labels: list[list[list[float]]], places: int) -> Tensor:
    """Labels padded to the same number of rows per image, float32 (N, places, 5)."""
    padded = torch.zeros(len(labels), places, 5)
    for row, boxes in zip(padded, labels, strict=True):
        row[: len(boxes)] = torch.tensor(boxes).reshape(-1, 5)
    return padded


# ---------------------------------------------------------------------- discs


def discs() -> Raw:
    """Discs and rings of all colours on noise, at 64 x 64 pixels, up to four per image."""
    # RandomState: NumPy's only generator whose stream is frozen.
    random, digest = np.random.RandomState(0), hashlib.sha256()
    images, labels = [], []
    for count in COUNTS:
        drawn = [_draw(random) for _ in range(count)]
        pixels = np.stack([image for image, _ in drawn])
        digest.update(pixels.data)
        images.append(torch.from_numpy(pixels))
        labels.append(_padded([label for _, label in drawn], DISCS))
    return Raw(images[0], labels[0], images[1], labels[1], None, digest.hexdigest()[:16])


def _draw(random: np.random.RandomState) -> tuple[np.ndarray, list[list[float]]]:
    """An image uint8 (3, 64, 64), and its boxes: class 1 is a disc, class 2 a ring."""
    image = random.uniform(90, 130, (3, SIDE, SIDE))
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    boxes = []
    for _ in range(random.randint(1, DISCS + 1)):
        label, radius = random.randint(1, 3), random.uniform(5, 12)
        cx, cy = random.uniform(radius, SIDE - radius, 2)
        distance, colour = np.hypot(x - cx, y - cy), random.choice([0, 255], 3)
        paint = np.clip(radius - distance + 0.5, 0, 1)
        if label == 2:
            paint *= np.clip(distance - radius / 2 + 0.5, 0, 1)
        image += paint * (colour[:, None, None] - image)
        box = [cx - radius, cy - radius, cx + radius, cy + radius]
        boxes.append([label, *(corner / SIDE for corner in box)])
    return image.round().astype(np.uint8), boxes


# ---------------------------------------------------------------------- augmentation


def draw(n: int, has_up: bool, generator: torch.Generator) -> Draws:
    """Draw for n images whether each is flipped vertically (`dy`), transposed (`dx`) and mirrored
    (`flip`); one with an up and a down is only mirrored.
    """
    tipped, transposed, mirrored = torch.randint(0, 2, (3, n), generator=generator)
    may = 0 if has_up else 1
    return Draws(tipped * may, transposed * may, mirrored.bool())


def turn(images: Tensor, labels: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """Square images (B, C, S, S), transposed, flipped vertically and mirrored as drawn, with their
    boxes (B, M, 5).
    """
    label, low, high = labels.split([1, 2, 2], -1)
    transposed = torch.cat([label, low.flip(-1), high.flip(-1)], -1)
    images, labels = _where(draws.dx > 0, images.transpose(2, 3), transposed, images, labels)
    images, labels = _where(draws.dy > 0, images.flip(2), _opposite(labels, 2), images, labels)
    return _where(draws.flip, images.flip(3), _opposite(labels, 1), images, labels)


def _opposite(labels: Tensor, low: int) -> Tensor:
    """Labels mirrored along one axis: column `low` (1 left, 2 top) is swapped with its opposite."""
    changed = labels.clone()
    changed[..., low], changed[..., low + 2] = 1 - labels[..., low + 2], 1 - labels[..., low]
    return changed


def _where(
    chosen: Tensor, images: Tensor, labels: Tensor, *others: Tensor
) -> tuple[Tensor, Tensor]:
    """Images and labels (B, ...) where chosen, the others elsewhere."""
    images = torch.where(chosen[:, None, None, None], images, others[0])
    return images, torch.where(chosen[:, None, None], labels, others[1])
