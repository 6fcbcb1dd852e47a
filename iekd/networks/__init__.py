"""Networks by name: `build(name, classes)(images)` is an `Output`, logits and named features."""

import re
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import nn

from iekd.networks.common import Output
from iekd.networks.imagenet import BLOCKS, ImageNetResNet
from iekd.networks.mobilenet import MobileNetV2
from iekd.networks.resnet import ResNet
from iekd.networks.ssd import SSD
from iekd.networks.vgg import VGG13
from iekd.networks.wrn import WideResNet

ALLOWED = (
    "resnet<d> with depth d = 6n + 2 from 8 to 110 (resnet20, resnet56); resnet<d>x<m> with its "
    "channels times m (resnet8x0.5, resnet32x4); resnet10, resnet18, resnet34 of ImageNet, with "
    "x<m> as well, and with _3x3 for small images (resnet34x0.25_3x3); detectors on these three, "
    "ssd_<name> (ssd_resnet18); wrn<d>_<k> with depth d = 6n + 4 from 10 and widening k from 1 "
    "(wrn16_2, wrn40_1); vgg13; mobilenetv2x0.5"
)


def check_name(name: str) -> None:
    """Raise ValueError, listing what is allowed, for a name that `build` does not know."""
    _constructor(name)


def build(name: str, num_classes: int, in_channels: int = 3) -> nn.Module:
    """A freshly initialised network, in training mode. Its `feature_channels` are the channels of
    `Output.feature`.

    Initialisation draws from torch's global generator: seed it first. Raises ValueError for an
    unknown name.
    """
    return _constructor(name)(num_classes=num_classes, in_channels=in_channels)


@cache
def feature_shapes(name: str, image: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
    """(C, H, W) of every feature, (C,) of 'pooled', for images of shape (C, H, W). Nothing is
    computed: the tensors have no data.
    """
    with torch.device("meta"), torch.no_grad():
        output = build(name, 10, image[0]).eval()(torch.empty(1, *image))
    return {feature: tuple(value.shape[1:]) for feature, value in output.features.items()}


def finds_boxes(name: str) -> bool:
    """Whether the network of this name is a detector."""
    return name.startswith("ssd_")


def last_size(name: str, image: tuple[int, int, int]) -> tuple[int, ...]:
    """(H, W) of the last feature for images of shape (C, H, W): the smallest in the network."""
    shapes = feature_shapes(name, image)
    return [shape for feature, shape in shapes.items() if feature.startswith("stage")][-1][1:]


def _constructor(name: str) -> Callable[..., nn.Module]:
    if found := _known(name):
        return found

    # The same letters and digits may spell one of our names: 'ResNet20', 'WRN-16-2'.
    bare = re.sub("[^a-z0-9.]", "", name.lower())
    other = re.sub("3x3$", "_3x3", re.sub(r"^(wrn\d\d)", r"\1_", bare))
    hint = f" (did you mean {other!r}?)" if _known(other) else ""
    raise ValueError(f"network {name!r} is not known{hint}; the networks are {ALLOWED}")


def _known(name: str) -> Callable[..., nn.Module] | None:
    """The builder of the network of this name, if there is one."""
    if name == "vgg13":
        return VGG13
    if name == "mobilenetv2x0.5":
        return partial(MobileNetV2, 0.5)
    if match := re.fullmatch(r"(ssd_)?resnet([1-9]\d*)(?:x([\d.]+))?(_3x3)?", name):
        kind, depth, small = SSD if match[1] else ImageNetResNet, int(match[2]), bool(match[4])
        if match[3] is not None and not _is_multiplier(match[3]):
            return None
        width = float(match[3] or 1)
        if depth in BLOCKS:
            return partial(kind, depth, width, small=small)
        if 8 <= depth <= 110 and depth % 6 == 2 and not small and not match[1]:
            return partial(ResNet, depth, width)
    if match := re.fullmatch(r"wrn([1-9]\d*)_([1-9]\d*)", name):
        depth, factor = int(match[1]), int(match[2])
        if depth >= 10 and depth % 6 == 4:
            return partial(WideResNet, depth, factor)
    return None


def _is_multiplier(text: str) -> bool:
    """Positive, not 1, in its shortest form: each network has one name, each run one identity."""
    try:
        value = float(text)
    except ValueError:
        return False
    return value > 0 and value != 1 and f"{value:g}" == text
