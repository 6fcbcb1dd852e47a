"""IE-FT: one half of the student's channels inherits the teacher's factor, the other half is pushed away from it to explore.

L = L_task + lambda_inh * L_inh(F_inh, F_T) + lambda_exp * L_exp(F_exp, F_T), each half through an encoder of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iekd import measures
from iekd.config import ConfigError
from iekd.factor import SLOPE, Encoder
from iekd.methods.batch import Batch
from iekd.methods.pairs import Pair
from iekd.methods.parts import Part, rolled
from iekd.networks import Output


def channel_split(channels: int, ratio: float, how: Literal["random", "halves"], seed: int, stage: int = 0) -> tuple[Tensor, Tensor]:
    """Indices of the inheriting and of the exploring channels: disjoint, together all of them, round(ratio * channels) inherit.

    'random' is one permutation per seed and stage, fixed for the run (described); 'halves' is first part, second part (authors' code).
    """
    order = torch.arange(channels)
    if how == "random":
        order = order[torch.randperm(channels, generator=torch.Generator().manual_seed(seed + 1_000_003 * stage))]
    count = round(ratio * channels)
    return order[:count].sort().values, order[count:].sort().values


def split_stages(
    pairs: Sequence[Pair], ratio: float, how: Literal["random", "halves"], seed: int
) -> tuple[list[tuple[Pair, Tensor]], list[tuple[Pair, Tensor]]]:
    """The stages with their inheriting, and with their exploring channels; a stage whose half has no channels is left out of it."""
    splits = [(pair, channel_split(pair.student_channels, ratio, how, seed, stage)) for stage, pair in enumerate(pairs)]
    inheriting, exploring = ([(pair, halves[side]) for pair, halves in splits if len(halves[side])] for side in (0, 1))
    return inheriting, exploring


class Half(nn.Module):
    """One half of the student: its channels, its encoder, its measure and weight."""

    def __init__(self, channels: Tensor, teacher_encoder: Encoder, measure: str, table: dict, weight: float):
        super().__init__()
        self.register_buffer("channels", channels)
        self.encoder = Encoder(len(channels), teacher_encoder.factor_channels)
        self.measure, self.weight = table[measure], weight
        # Partial L2 sees the teacher through a margin ReLU (overhaul distillation); the factor's LeakyReLU scales the margin too.
        margin = SLOPE * measures.expected_negative(teacher_encoder.last_norm) if measure == "partial-l2" else None
        self.register_buffer("margin", margin)

    def factor(self, feature: Tensor) -> Tensor:
        """This half's factor (B, K, H, W) of the student's feature (B, C, H, W)."""
        return self.encoder(feature.index_select(1, self.channels))

    def forward(self, factor: Tensor, target: Tensor) -> Tensor:
        """Weighted loss of this half's factor against its target, both (B, K, H, W)."""
        target = target if self.margin is None else measures.margin_relu(target, self.margin)
        return self.weight * self.measure(factor, target)


class IEFT(nn.Module):
    """task = CE, inherit = lambda_inh * L_inh, explore = lambda_exp * L_exp.

    Weights 50 and 50 (reported second-hand) with mean-reduced measures: at N = 2048 each term starts near 1. A half without a measure
    ('none') or without channels has no term and no encoder. Both targets are the teacher's factor F_T (diagram and code);
    explore_target 'inherit' pushes F_exp away from F_inh instead, through which no gradient goes (after a blog's text); 'shuffled' away
    from the teacher's factor of the image before it in the batch, a push that cannot be about the image (our control). A 'frozen'
    exploration encoder stays at its random weights, so that only the student's feature can move away (our control).
    """

    def __init__(
        self, channels: int, teacher_encoder: Encoder, *, inherit: str = "l1", explore: str = "l1", inherit_weight: float = 50.0,
        explore_weight: float = 50.0, split: Literal["random", "halves"] = "random", ratio: float = 0.5, seed: int = 0,
        explore_target: Literal["teacher", "inherit", "shuffled"] = "teacher", explore_encoder: Literal["trained", "frozen"] = "trained",
    ):  # fmt: skip
        super().__init__()
        self.explore_target = explore_target
        inheriting, exploring = channel_split(channels, ratio, split, seed)
        self.halves = nn.ModuleDict()
        if inherit != "none" and len(inheriting):
            self.halves["inherit"] = Half(inheriting, teacher_encoder, inherit, measures.INHERIT, inherit_weight)
        if explore != "none" and len(exploring):
            self.halves["explore"] = Half(exploring, teacher_encoder, explore, measures.EXPLORE, explore_weight)
            self.halves["explore"].encoder.requires_grad_(explore_encoder == "trained")
        if explore_target == "inherit" and set(self.halves) == {"explore"}:
            raise ConfigError(
                f"split_ratio: {ratio:g} of {channels} channels is none, so there is no inherited factor to explore away from"
            )

    def parts(self, student: Output, teacher: Output) -> dict[str, Part]:
        """What each half compares: its factor with its target, both (B, K, H, W)."""
        factors = {name: half.factor(student.feature) for name, half in self.halves.items()}
        targets = dict.fromkeys(factors, teacher.features["factor"])
        if self.explore_target == "inherit":
            targets["explore"] = factors["inherit"].detach()
        if self.explore_target == "shuffled":
            targets["explore"] = rolled(targets["explore"])
        return {name: Part(factors[name], targets[name], half, half.channels) for name, half in self.halves.items()}

    def forward(self, batch: Batch, student: Output, teacher: Output) -> dict[str, Tensor]:
        terms = {name: part.value for name, part in self.parts(student, teacher).items()}
        return {"task": F.cross_entropy(student.logits, batch.labels), **terms}
