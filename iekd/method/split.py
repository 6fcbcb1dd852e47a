"""Which channels of the student inherit, and which explore."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from iekd.method.features import Pair

# the fields of a run whose method splits channels
SPLIT = ("explore_weight", "split", "split_ratio")


def channel_split(
    channels: int, ratio: float, how: Literal["random", "halves"], seed: int, stage: int = 0
) -> tuple[Tensor, Tensor]:
    """Indices of the inheriting and of the exploring channels: disjoint and complete; round(ratio *
    channels) inherit.

    'random' is one permutation per seed and stage, fixed for the run (described); 'halves' is the
    first part and the second (authors' code).
    """
    order = torch.arange(channels)
    if how == "random":
        order = order[
            torch.randperm(
                channels, generator=torch.Generator().manual_seed(seed + 1_000_003 * stage)
            )
        ]
    count = round(ratio * channels)
    return order[:count].sort().values, order[count:].sort().values


def split_stages(
    pairs: Sequence[Pair], ratio: float, how: Literal["random", "halves"], seed: int
) -> tuple[list[tuple[Pair, Tensor]], list[tuple[Pair, Tensor]]]:
    """The stages with their inheriting and with their exploring channels; a stage is left out of a
    half in which it has no channels.
    """
    splits = [
        (pair, channel_split(pair.student_channels, ratio, how, seed, stage))
        for stage, pair in enumerate(pairs)
    ]
    inheriting, exploring = (
        [(pair, halves[side]) for pair, halves in splits if len(halves[side])] for side in (0, 1)
    )
    return inheriting, exploring
