"""What is known about a data set before its pixels are read. No torch in this file."""

from pathlib import Path
from typing import NamedTuple, Protocol

from iekd.data import own
from iekd.data.own import is_own as is_own
from iekd.errors import ConfigError


class Facts(NamedTuple):
    """Facts about a whole data set. Mean and deviation of each channel are for pixels in 0..1."""

    num_classes: int
    channels: int
    # Empty for your own images: computed from the training images when they are read.
    mean: tuple[float, ...]
    std: tuple[float, ...]
    # In pixels; 0 for your own images unless all are squares of one size.
    side: int
    train_images: int
    # Whether a mirrored image keeps its meaning.
    flip: bool
    # The classes of the boxes to be found; empty if every image has one class.
    boxes: tuple[str, ...] = ()
    # Whether an image has an up and a down.
    has_up: bool = True


class _Facts(dict[str, Facts]):
    """Looks into the folder of a reader's own data set. Raises `DataError` if there is none."""

    def __missing__(self, name: str) -> Facts:
        return own_facts(name)


def own_facts(name: str, root: Path | None = None) -> Facts:
    """The facts about a reader's own images, from their names and headers."""
    seen = own.look(own.find(name, root))
    return Facts(len(seen.classes), seen.channels, (), (), seen.side, len(seen.train), flip=True)


def _of_255(*values: float) -> tuple[float, ...]:
    """Values in 0..255 as values in 0..1."""
    return tuple(value / 255 for value in values)


# Mean and deviation: from our training split (a test recomputes them); for CIFAR, the authors'
# constants (FACTS.md: networks and recipe, C).
FACTS = _Facts()
FACTS["digits"] = Facts(10, 1, (0.3056,), (0.3765,), 8, 1200, flip=False)
FACTS["fashion-mnist"] = Facts(10, 1, (0.2860,), (0.3530,), 28, 60_000, flip=True)
CIFAR10 = _of_255(125.3, 123.0, 113.9), _of_255(63.0, 62.1, 66.7)
FACTS["cifar10"] = Facts(10, 3, *CIFAR10, 32, 50_000, flip=True)
CIFAR100 = _of_255(129.3, 124.1, 112.4), _of_255(68.2, 65.4, 70.4)
FACTS["cifar100"] = Facts(100, 3, *CIFAR100, 32, 50_000, flip=True)
IMAGENETTE = (0.4623, 0.4579, 0.4302), (0.2727, 0.2707, 0.2922)
FACTS["imagenette"] = Facts(10, 3, *IMAGENETTE, 64, 9469, flip=True)
# As torchvision's trained networks expect. Its files are read while a run trains: STREAMED.
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FACTS["imagenet64"] = Facts(1000, 3, *IMAGENET, 64, 1_281_167, flip=True)
FACTS["imagenet"] = Facts(1000, 3, *IMAGENET, 224, 1_281_167, flip=True)
# With boxes. Mean and deviation: `discs` and `bccd` as above, `voc` ImageNet's constants.
DISCS = (0.4391, 0.4383, 0.4397), (0.1728, 0.1726, 0.1731)
FACTS["discs"] = Facts(2, 3, *DISCS, 64, 300, True, ("disc", "ring"), has_up=False)
BCCD = (0.7374, 0.6962, 0.7156), (0.0598, 0.1012, 0.0745)
FACTS["bccd"] = Facts(3, 3, *BCCD, 0, 292, True, ("rbc", "wbc", "platelets"), has_up=False)
VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
FACTS["voc"] = Facts(20, 3, *IMAGENET, 0, 16_551, True, VOC_CLASSES)
NAMES, STREAMED = tuple(FACTS), ("imagenet",)


def has_boxes(name: str) -> bool:
    """Whether boxes are to be found in the images of a data set."""
    return name in NAMES and FACTS[name].boxes != ()


class Selection(Protocol):
    """Which images of which data set: a `RunConfig`, or anything else with these fields."""

    @property
    def dataset(self) -> str: ...
    @property
    def train_images(self) -> int: ...
    @property
    def validation_images(self) -> int: ...
    @property
    def image_size(self) -> int: ...


def image_shape(run: Selection) -> tuple[int, int, int]:
    """(C, H, W) of the images of a run, known without reading them."""
    facts = FACTS[run.dataset]
    if not (side := run.image_size or facts.side):
        raise ConfigError(own.no_size(run.dataset))
    return facts.channels, side, side


def image_count(run: Selection) -> int:
    """The number of training images of a run, known without reading them."""
    return run.train_images or FACTS[run.dataset].train_images - run.validation_images
