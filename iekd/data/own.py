"""Your own images: a folder of class folders, used as a data set called `my-...`.

    $IEKD_DATA/my-flowers/train/daisy/*.jpg      iekd run --dataset my-flowers --image-size 32
    $IEKD_DATA/my-flowers/test/daisy/*.jpg

JPEG and PNG files; everything else is ignored. The classes are the folders of `train/` in
alphabetical order. Images are squashed to squares, each pixel the mean of its area. Records and
paths contain only the name, not the location of the folder; the checksum of the files distinguishes
two folders with the same name.
"""

import functools
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from iekd.data.roots import named_root, roots
from iekd.errors import ConfigError, DataError

NAME = re.compile(r"my(-[a-z0-9]+)+")
SUFFIXES = (".jpg", ".jpeg", ".png")
MOVE = "Move some images of every class, one in five say, from train/CLASS to test/CLASS."


class Look(NamedTuple):
    """What a folder holds, as far as file names and headers tell."""

    classes: list[str]
    # File and class of every image.
    train: list[tuple[Path, int]]
    test: list[tuple[Path, int]]
    channels: int
    # In pixels; 0 unless all images are squares of one size.
    side: int


def is_own(name: Any) -> bool:
    """Whether a data set of this name is a reader's own."""
    return isinstance(name, str) and NAME.fullmatch(name) is not None


def folders(root: Path | None = None) -> list[Path]:
    """The reader's own data sets that are available, those of the first roots first."""
    found = [path.parent for place in roots(named_root(root)) for path in place.glob("my-*/train")]
    return [folder for folder in found if is_own(folder.name)]


def find(name: str, root: Path | None = None) -> Path:
    """The folder of a data set. Raises `DataError` if there is none."""
    for folder in folders(root):
        if folder.name == name:
            return folder
    searched = ", ".join(str(place / name / "train") for place in roots(named_root(root)))
    raise DataError(
        f"{name}: there is no {searched}. Put images into train/CLASS and test/CLASS of a folder "
        f"{name}, and name the folder that holds it (IEKD_DATA)."
    )


@functools.lru_cache(maxsize=8)
def look(folder: Path) -> Look:
    """What a folder holds. Reads headers only, decodes nothing. Raises `DataError`."""
    if not (folder / "test").is_dir():
        raise DataError(f"{folder}: has no test/, so nothing could be measured. {MOVE}")
    classes, train = _images(folder / "train")
    tested, test = _images(folder / "test")
    if tested != classes:
        differ = ", ".join(sorted({*classes} ^ {*tested}))
        raise DataError(f"{folder}: train/ and test/ differ in classes ({differ}). {MOVE}")

    # Colour and size, from the headers.
    sizes, modes = set(), set()
    for path, _ in [*train, *test]:
        with _opened(path) as image:
            sizes.add(image.size)
            modes.add(image.mode)
    width, height = max(sizes)
    side = width if len(sizes) == 1 and width == height else 0
    return Look(classes, train, test, 1 if modes <= {"1", "L"} else 3, side)


def read(folder: Path, size: int) -> dict[str, Any]:
    """Every image at `size` x `size` pixels (0 = unchanged), labels, and the files' checksum.

    Raises `DataError` for a file that cannot be decoded, `ConfigError` where a size is needed.
    """
    seen, digest = look(folder), hashlib.sha256()
    if not (side := size or seen.side):
        raise ConfigError(no_size(folder.name))
    found: dict[str, Any] = {}
    for split, files in (("train", seen.train), ("test", seen.test)):
        pixels = [_decoded(path, seen.channels, side) for path, _ in files]
        found[f"{split}_images"] = np.stack(pixels).reshape(len(files), side, side, -1)
        found[f"{split}_labels"] = np.array([label for _, label in files])
        for path, _ in files:
            digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
            digest.update(path.read_bytes())
    return found | {"checksum": digest.hexdigest()[:16]}


def no_size(name: str) -> str:
    """The message for images that have no common size."""
    return (
        f"image_size: 0 is not usable; the images of {name} are not squares of one size, "
        "choose a side in pixels, from 8"
    )


def _images(folder: Path) -> tuple[list[str], list[tuple[Path, int]]]:
    """The classes of a split, and its images with their classes."""
    classes = sorted(
        path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != "."
    )
    images = []
    for label, name in enumerate(classes):
        files = sorted((folder / name).iterdir())
        found = [path for path in files if _is_image(path)]
        if not found:
            raise DataError(f"{folder / name}: has no image ({', '.join(SUFFIXES)}). {MOVE}")
        images += [(path, label) for path in found]
    if len(classes) < 2:
        raise DataError(f"{folder}: needs two folders of images or more, one for each class")
    return classes, images


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.name[0] != "."


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image file. Raises `DataError` if it cannot be read, here or in the block."""
    try:
        with Image.open(path) as image:
            yield image
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path}: cannot be decoded ({error}). Delete or replace it.") from None


def _decoded(path: Path, channels: int, side: int) -> np.ndarray:
    """uint8 (side, side) or (side, side, 3), rotated as the camera recorded."""
    with _opened(path) as image:
        upright = ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB")
        return np.asarray(upright.resize((side, side), Image.Resampling.BOX))
