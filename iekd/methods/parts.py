"""What a method compares at the student's last stage, laid open for the probe (`iekd.probe`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from iekd.networks import Output


class Part(NamedTuple):
    """One loss term at the last stage. `loss(student, target)` is the weighted term, with its sign.

    `student` and `target` hold a factor, a feature or an attention map for each image, (B, ...). The term sees these
    `channels` (None = all) of the student's feature `stage` ('' = the last).
    """

    student: Tensor
    target: Tensor
    loss: Callable[[Tensor, Tensor], Tensor]
    channels: Tensor | None = None
    stage: str = ""

    @property
    def value(self) -> Tensor:
        return self.loss(self.student, self.target)

    def raw(self, output: Output) -> Tensor:
        """The student's feature that the term sees, (B, C, H, W)."""
        feature = output.features[self.stage] if self.stage else output.feature
        return feature if self.channels is None else feature.index_select(1, self.channels)


def rolled(factor: Tensor) -> Tensor:
    """The factor of another image: each gets that of the image before it in the batch, the first that of the last."""
    return factor.roll(1, 0)
