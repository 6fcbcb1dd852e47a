"""What a run sees of a data set: whole splits as uint8 tensors.

>>> dataset = load(RunConfig.create("smoke"))
>>> dataset.train.images.shape
torch.Size([400, 1, 8, 8])
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from iekd.data import facts, own
from iekd.data.facts import Selection
from iekd.data.readers import balanced_order
from iekd.data.sources import load_raw
from iekd.errors import ConfigError

CHUNK = 5000


class Split(NamedTuple):
    """Part of a data set, on the CPU."""

    images: Any  # uint8 (N, C, H, W): a tensor, or a `Stream` (iekd.data.stream)
    labels: Tensor  # int64 (N,); with boxes float32 (N, M, 5), see iekd.data.boxes
    # bool (N,), False where an image is a recompressed copy; None = all are exact.
    exact: Tensor | None = None


class DataSet(NamedTuple):
    """What a run trains, selects and tests on, and what it needs to know about the pixels."""

    name: str
    num_classes: int
    train: Split
    validation: Split
    test: Split
    # Of the whole data set, before selection and scaling.
    checksum: str
    # Of each channel, for pixels in 0..1.
    mean: tuple[float, ...]
    std: tuple[float, ...]
    # Whether a mirrored image keeps its meaning.
    flip: bool
    # Pixels of padding for the random crop; for a stream, see `iekd.data.stream`.
    pad: int
    # See `Facts`.
    boxes: tuple[str, ...] = ()
    has_up: bool = True


def load(run: Selection, root: Path | None = None) -> DataSet:
    """The data set of a run (a `RunConfig`, or anything with these four fields).

    Validation: the first `validation_images` of one fixed, class-balanced order of the training set
    (with boxes, of the official validation split, then of the official training split); training:
    the next `train_images` (0 = all the rest). No choice depends on the seed. Images are then
    scaled down to `image_size`. `root` is searched first (iekd.data.roots). Raises `DataError` for
    missing or damaged data, `ConfigError` for more images or pixels than available.
    """
    raw = load_raw(run.dataset, root, run.image_size)
    _check(run, len(raw.train_labels), raw.train_images.shape[-1])

    # Which images are for validation, which for training.
    held, boxes = run.validation_images, facts.has_boxes(run.dataset)
    order = torch.arange(len(raw.train_labels)) if boxes else balanced_order(raw.train_labels)
    end = held + run.train_images if run.train_images else len(order)

    def part(index: Tensor) -> Split:
        index = index.sort().values
        return Split(_select(raw.train_images, index, run.image_size), raw.train_labels[index])

    train, validation = part(order[held:end]), part(order[:held])
    everything = torch.arange(len(raw.test_labels))
    tested = _select(raw.test_images, everything, run.image_size)
    test = Split(tested, raw.test_labels, raw.exact)

    # What is known about the pixels.
    own_one = own.is_own(run.dataset)
    known = facts.own_facts(run.dataset, root) if own_one else facts.FACTS[run.dataset]
    mean, std = _statistics(raw.train_images) if own_one else (known.mean, known.std)
    # The paper's recipe pads 4 of 32 pixels.
    pad = max(1, test.images.shape[-1] // 8)
    if run.dataset in facts.STREAMED:
        from iekd.data.stream import PAD as pad
    split = (train, validation, test)
    seen = DataSet(run.dataset, known.num_classes, *split, raw.checksum, mean, std, known.flip, pad)
    return seen._replace(boxes=known.boxes, has_up=known.has_up)


def _check(run: Selection, available: int, side: int) -> None:
    """Refuse more images or pixels than the data set has."""
    name, held, used, size = run.dataset, run.validation_images, run.train_images, run.image_size
    why = f"is not usable; {name} has {available} training images"
    if held >= available:
        raise ConfigError(f"validation_images: {held} {why}, choose 0 to {available - 1}")
    if held + used > available:
        choose = f"choose 1 to {available - held}, or 0 for all of these"
        raise ConfigError(
            f"train_images: {used} {why}, validation_images holds out {held}; {choose}"
        )
    if size > side:
        raise ConfigError(
            f"image_size: {size} is not usable; {name} has {side} pixels, choose 0 to {side}"
        )


def _select(images: Any, index: Tensor, size: int) -> Any:
    """Some of the images of a data set, scaled; if it is all of them, they are not copied."""
    if not isinstance(images, Tensor):
        return images.only(index, size)
    return _scale(images if len(index) == len(images) else images[index], size)


def _scale(images: Tensor, size: int) -> Tensor:
    """Area down-sampling of uint8 (N, C, H, W) to `size` x `size`, rounded; 0 = unchanged."""
    if size in (0, images.shape[-1]):
        return images
    # In chunks: a float copy of a whole split would take 600 MB.
    scaled = []
    for chunk in images.split(CHUNK):
        small = F.interpolate(chunk.float(), size=(size, size), mode="area")
        scaled.append(small.round().byte())
    return torch.cat(scaled)


def _statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 (N, C, H, W), in 0..1, to six digits."""
    levels = torch.arange(256).double() / 255
    mean, std = [], []
    for channel in images.unbind(1):
        share = channel.flatten().bincount(minlength=256) / channel.numel()
        centre = (share * levels).sum()
        deviation = (share * (levels - centre).square()).sum().sqrt()
        mean.append(round(float(centre), 6))
        # A constant channel is not divided by zero.
        std.append(max(round(float(deviation), 6), 1 / 255))
    return tuple(mean), tuple(std)
