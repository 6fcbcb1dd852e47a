"""ImageNet in small: a folder of 24 JPEGs in torchvision's layout, and runs on it that take seconds."""

from pathlib import Path

import numpy as np
from PIL import Image

from iekd.config import RunConfig
from iekd.data import facts, imagenet, sources

CLASSES = ("n01440764", "n01443537", "n15075141")
TRAIN, TEST = 8, 2  # images of a class
PAIR = dict(teacher="resnet10x0.125_3x3", student="resnet10x0.0625_3x3")
SHORT = dict(epochs=2, teacher_epochs=1, ae_epochs=1, batch_size=10, image_size=32)
ALL = dict(train_images=0, validation_images=0, augment="standard")


def write(root: Path, size: tuple[int, int] = (60, 44)) -> Path:
    """Write train/WNID/*.JPEG and val/WNID/*.JPEG, `size` wide and high; the classes differ in
    brightness.
    """
    random = np.random.default_rng(0)
    for split, count in (("train", TRAIN), ("val", TEST)):
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                coarse = random.integers(70 * label, 70 * label + 100, (6, 8, 3), np.uint8)
                image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
                image.save(folder / f"{name}_{number}.JPEG", quality=95)
    return root


def as_small() -> None:
    """From now on ImageNet has three classes, 24 training images and 6 others, in this process."""
    for name in sources.IMAGENET:
        few = {"num_classes": len(CLASSES), "train_images": TRAIN * len(CLASSES)}
        facts.FACTS[name] = facts.FACTS[name]._replace(**few)
    imagenet.TEST_IMAGES = TEST * len(CLASSES)


def in_folder(root: Path, monkeypatch) -> Path:
    """The files in $IEKD_DATA/imagenet, ImageNet as small as they are, and no worker processes."""
    for name in sources.IMAGENET:
        monkeypatch.setitem(facts.FACTS, name, facts.FACTS[name])
    monkeypatch.setattr(imagenet, "TEST_IMAGES", imagenet.TEST_IMAGES)
    monkeypatch.setenv("IEKD_DATA", str(root))
    monkeypatch.setenv("IEKD_WORKERS", "0")
    as_small()
    sources._load.cache_clear()
    return write(root / "imagenet")


def run(method: str = "supervised", dataset: str = "imagenet", **fields) -> RunConfig:
    """A run on all of these images, at 32 pixels."""
    fields = {**PAIR, **SHORT, **ALL, **fields}
    return RunConfig.create("smoke", dataset=dataset, method=method, **fields)
