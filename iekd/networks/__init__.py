"""Networks by name: `build(name, classes)(images)` returns an `Output`: logits, and features for
the methods.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import nn

from iekd.networks.common import Output
from iekd.networks.imagenet import BLOCKS, ImageNetResNet
from iekd.networks.mobilenet import MobileNetV2
from iekd.networks.resnet import ResNet
from iekd.networks.vgg import VGG13
from iekd.networks.wrn import WideResNet

__all__ = ["Output", "build", "check_name", "feature_shapes"]

ALLOWED = (
    "resnet<d> with depth d = 6n + 2 from 8 to 110 (resnet20, resnet56); "
    "resnet<d>x<m> with its channels times m (resnet8x0.5, resnet32x4); "
    "resnet10, resnet18, resnet34 of ImageNet, with x<m> as well, and with _3x3 for small images "
    "(resnet34x0.25_3x3); "
    "wrn<d>_<k> with depth d = 6n + 4 from 10 and widening k from 1 (wrn16_2, wrn40_1); vgg13; "
    "mobilenetv2x0.5"
)


def check_name(name: str) -> None:
    """Raises ValueError, with the list of what is allowed, if `build` would not know the name."""
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


def last_size(name: str, image: tuple[int, int, int]) -> tuple[int, ...]:
    """(H, W) of the last feature for images of shape (C, H, W): the smallest in the network."""
    return [
        shape
        for feature, shape in feature_shapes(name, image).items()
        if feature.startswith("stage")
    ][-1][1:]


def _constructor(name: str) -> Callable[..., nn.Module]:
    if name == "vgg13":
        return VGG13
    if name == "mobilenetv2x0.5":
        return partial(MobileNetV2, 0.5)
    if match := re.fullmatch(r"resnet([1-9]\d*)(?:x([\d.]+))?", name):
        depth, width = int(match[1]), match[2]
        if 8 <= depth <= 110 and depth % 6 == 2 and (width is None or _is_multiplier(width)):
            return partial(ResNet, depth, float(width or 1))
    if match := re.fullmatch(r"resnet(10|18|34)(?:x([\d.]+))?(_3x3)?", name):
        width = match[2]
        if width is None or _is_multiplier(width):
            return partial(
                ImageNetResNet, int(match[1]), float(width or 1), small=match[3] is not None
            )
    if match := re.fullmatch(r"wrn([1-9]\d*)_([1-9]\d*)", name):
        depth, factor = int(match[1]), int(match[2])
        if depth >= 10 and depth % 6 == 4:
            return partial(WideResNet, depth, factor)
    raise ValueError(
        f"network {name!r} is not known{_other_spelling(name)}; the networks are {ALLOWED}"
    )


def _other_spelling(name: str) -> str:
    """' (did you mean ...?)' for the same letters and digits: 'ResNet20', 'WRN-16-2'; a depth that
    does not exist is better not guessed.
    """

    def bare(text: str) -> str:
        return re.sub("[^a-z0-9.]", "", text.lower())

    resnets = [
        f"resnet{depth}{width}"
        for depth in range(8, 111, 6)
        for width in ("", "x0.25", "x0.5", "x2", "x4")
    ]
    imagenet = [
        f"resnet{depth}{width}{stem}"
        for depth in BLOCKS
        for width in ("", "x0.25", "x0.5")
        for stem in ("", "_3x3")
    ]
    known = [
        *resnets,
        *imagenet,
        *(f"wrn{depth}_{k}" for depth in range(10, 47, 6) for k in (1, 2, 4, 8, 10)),
        "vgg13",
        "mobilenetv2x0.5",
    ]
    return next((f" (did you mean {other!r}?)" for other in known if bare(other) == bare(name)), "")


def _is_multiplier(text: str) -> bool:
    """Positive, not 1, in its shortest form: one network has one name, so one run one identity."""
    try:
        value = float(text)
    except ValueError:
        return False
    return value > 0 and value != 1 and f"{value:g}" == text
