"""What a run sees of a data set: whole splits as uint8 tensors, with a validation part that is the same for every seed.

>>> dataset = load(RunConfig.create("smoke"))
>>> dataset.train.images.shape
torch.Size([400, 1, 8, 8])
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from iekd.config import RunConfig
from iekd.data.sources import Row, balanced_order, describe, load_raw, pack
from iekd.errors import ConfigError, DataError

__all__ = ["DataError", "DataSet", "Row", "Split", "describe", "load", "load_raw", "pack"]


class Split(NamedTuple):
    """Part of a data set, on the CPU."""

    images: Tensor  # uint8 (N, C, H, W)
    labels: Tensor  # int64 (N,)
    exact: Tensor | None = (
        None  # bool (N,), False where an image is a recompressed copy; None = all are exact
    )


class DataSet(NamedTuple):
    """What a run trains, selects and tests on, and what it must know about the pixels."""

    name: str
    num_classes: int
    train: Split
    validation: Split
    test: Split
    checksum: str  # of the whole data set, before anything was selected or scaled
    mean: tuple[float, ...]  # of each channel, pixels in 0..1
    std: tuple[float, ...]
    flip: bool  # whether a mirrored image keeps its meaning
    pad: int  # pixels of padding for the random crop


class Facts(NamedTuple):
    num_classes: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    side: int  # pixels
    train_images: int
    flip: bool


FACTS = {
    # Mean and deviation of our training split's pixels (a test computes them again).
    "digits": Facts(10, 1, (0.3056,), (0.3765,), 8, 1200, flip=False),
    "fashion-mnist": Facts(10, 1, (0.2860,), (0.3530,), 28, 60_000, flip=True),
    # The authors' constants (FACTS.md: networks and recipe, C), in 0..255 there.
    "cifar10": Facts(
        10,
        3,
        (125.3 / 255, 123.0 / 255, 113.9 / 255),
        (63.0 / 255, 62.1 / 255, 66.7 / 255),
        32,
        50_000,
        flip=True,
    ),
    "cifar100": Facts(
        100,
        3,
        (129.3 / 255, 124.1 / 255, 112.4 / 255),
        (68.2 / 255, 65.4 / 255, 70.4 / 255),
        32,
        50_000,
        flip=True,
    ),
    "imagenette": Facts(
        10, 3, (0.4623, 0.4579, 0.4302), (0.2727, 0.2707, 0.2922), 64, 9469, flip=True
    ),
}


def load(config: RunConfig, root: Path | None = None) -> DataSet:
    """The data set of a run, from `root` or the other sources that iekd.data.sources lists.

    Validation: the first `validation_images` of one fixed, class-balanced order of the training set; training: the next
    `train_images` (0 = all the rest). No choice depends on the seed. Images are then scaled down to `image_size`.
    Raises `DataError` for missing or damaged data, `ConfigError` for more images or pixels than there are.
    """
    raw, facts = load_raw(config.dataset, root), FACTS[config.dataset]
    _check(config, len(raw.train_labels), raw.train_images.shape[-1])
    order, held = balanced_order(raw.train_labels), config.validation_images
    end = held + config.train_images if config.train_images else len(order)

    def part(index: Tensor) -> Split:
        index = index.sort().values
        return Split(_scale(raw.train_images[index], config.image_size), raw.train_labels[index])

    test = Split(_scale(raw.test_images, config.image_size), raw.test_labels, raw.exact)
    pad = max(1, test.images.shape[-1] // 8)  # the 4 of 32 pixels that the paper's recipe uses
    return DataSet(
        config.dataset,
        facts.num_classes,
        part(order[held:end]),
        part(order[:held]),
        test,
        raw.checksum,
        facts.mean,
        facts.std,
        facts.flip,
        pad,
    )


def image_shape(config: RunConfig) -> tuple[int, int, int]:
    """(C, H, W) of the images of a run, known without loading them."""
    facts = FACTS[config.dataset]
    side = config.image_size or facts.side
    return facts.channels, side, side


def image_count(config: RunConfig) -> int:
    """The training images of a run, known without loading them."""
    return config.train_images or FACTS[config.dataset].train_images - config.validation_images


def _check(config: RunConfig, available: int, side: int) -> None:
    """Refuse more images or pixels than the data set has."""
    name, held, used, size = (
        config.dataset,
        config.validation_images,
        config.train_images,
        config.image_size,
    )
    if held >= available:
        raise ConfigError(
            f"validation_images: {held} is not usable; {name} has {available} training images, choose 0 to {available - 1}"
        )
    if held + used > available:
        raise ConfigError(
            f"train_images: {used} is not usable; {name} has {available} training images, validation_images holds "
            f"out {held}; choose 1 to {available - held}, or 0 for all of these"
        )
    if size > side:
        raise ConfigError(
            f"image_size: {size} is not usable; {name} has {side} pixels, choose 0 to {side}"
        )


def _scale(images: Tensor, size: int) -> Tensor:
    """Area down-sampling of uint8 (N, C, H, W) to `size` x `size`, rounded; 0 = leave as they are."""
    if size in (0, images.shape[-1]):
        return images
    chunks = images.split(5000)  # the float copy of a whole split would take 600 MB
    return torch.cat(
        [F.interpolate(c.float(), size=(size, size), mode="area").round().byte() for c in chunks]
    )
