"""IE-OD: part of each stage's channels inherits the teacher's features before ReLU, the rest is pushed away from them to explore.

The paper only names IE-OD. Our choice: OD on the inheriting half, its dis-similarity on the exploring half, at every stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from iekd import measures
from iekd.methods.batch import Batch
from iekd.methods.ie import split_stages
from iekd.methods.od import Stage, partial_squares
from iekd.methods.pairs import Pair, halved_backwards
from iekd.methods.parts import Part
from iekd.networks import Output


class IEOD(nn.Module):
    """task = CE, inherit = weight * OD's loss of the inheriting half (sum over (C, H, W), weight 1e-3: that of OD),
    explore = -explore_weight * sum over the stages of 2^(k - n) * `measures.partial_l2` of the other half (weight 50: that of IE-FT).

    OD's partial L2 has no lower bound when negated: the connector alone could grow without end. `measures.partial_l2` takes it of
    L2-normalised features and its root, so it stays within 0 .. 2 / sqrt(N), N = C H W; at weight 50 and N = 4096 the last stage
    starts near -1. Each half has connectors of its own. With ratio 1 this is OD.
    """

    def __init__(
        self, pairs: Sequence[Pair], norms: Mapping[str, nn.BatchNorm2d], weight: float, explore_weight: float, *,
        split: Literal["random", "halves"] = "random", ratio: float = 0.5, seed: int = 0,
    ):  # fmt: skip
        super().__init__()
        self.weight, self.explore_weight = weight, explore_weight
        inheriting, exploring = split_stages(pairs, ratio, split, seed)
        self.inherit = nn.ModuleList(Stage(pair, norms[pair.teacher], channels) for pair, channels in inheriting)
        self.explore = nn.ModuleList(Stage(pair, norms[pair.teacher], channels) for pair, channels in exploring)

    def forward(self, batch: Batch, student: Output, teacher: Output) -> dict[str, Tensor]:
        terms = {"task": F.cross_entropy(student.logits, batch.labels)}
        if self.inherit:
            terms["inherit"] = self.weight * halved_backwards([partial_squares(*half(student, teacher)) for half in self.inherit])
        if self.explore:
            away = [measures.EXPLORE["partial-l2"](*half(student, teacher)) for half in self.explore]
            terms["explore"] = self.explore_weight * halved_backwards(away)
        return terms

    def parts(self, student: Output, teacher: Output) -> dict[str, Part]:
        """What each half compares at the last stage: features before ReLU, through its connector, with the teacher's."""
        losses = {"inherit": self._inherit, "explore": self._explore}
        found = {}
        for name, stages in (("inherit", self.inherit), ("explore", self.explore)):
            if stages:
                last = stages[-1]
                found[name] = Part(*last(student, teacher), losses[name], last.channels, last.pair.student)
        return found

    def _inherit(self, feature: Tensor, target: Tensor) -> Tensor:
        return self.weight * partial_squares(feature, target)

    def _explore(self, feature: Tensor, target: Tensor) -> Tensor:
        return self.explore_weight * measures.EXPLORE["partial-l2"](feature, target)
