"""OD and IE-OD: the student matches the teacher's features before ReLU as far as they count; with
IE, one half explores.

OD: Heo et al., "A comprehensive overhaul of feature distillation", ICCV 2019. The paper only names
IE-OD. Our choice: OD on the inheriting half, its dissimilarity on the exploring half, at every
stage.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from iekd.method import features, measures
from iekd.method.features import Batch, Pair, Part, connector, halved_backwards
from iekd.method.registry import EXPLORE, method
from iekd.method.split import SPLIT, split_stages
from iekd.networks import Output


def partial_squares(student: Tensor, teacher: Tensor) -> Tensor:
    """Partial L2: squared differences, 0 where student <= teacher <= 0, summed over (C, H, W), mean
    over the batch.
    """
    forgiven = (student <= teacher) & (teacher <= 0)
    return torch.where(forgiven, 0, (student - teacher).square()).sum((1, 2, 3)).mean()


class Stage(nn.Module):
    """The two sides of one stage before ReLU: the student through a connector, the teacher through
    its margin ReLU.

    The margin is the expected negative response of each of the teacher's channels, from the last BN
    before the ReLU; for a ResNet, as in the authors' code, that leaves out what the shortcut adds.
    `channels` selects some of the student's.
    """

    def __init__(self, pair: Pair, norm: nn.BatchNorm2d, channels: Tensor | None = None):
        super().__init__()
        self.pair = pair
        self.connector = connector(
            pair.student_channels if channels is None else len(channels), pair.teacher_channels
        )
        self.register_buffer("channels", channels)
        self.register_buffer("margin", measures.expected_negative(norm))

    def forward(self, student: Output, teacher: Output) -> tuple[Tensor, Tensor]:
        """Student and teacher, both of the teacher's shape (B, C, H, W)."""
        feature = student.features[f"{self.pair.student}_pre"]
        feature = feature if self.channels is None else feature.index_select(1, self.channels)
        return self.connector(feature), measures.margin_relu(
            teacher.features[f"{self.pair.teacher}_pre"], self.margin
        )


@method(
    "od",
    taught="teacher",
    fields=("od_weight",),
    compares=features.stages,
    reads="stages_pre",
    source="the student's features before ReLU match the teacher's, as far as they count (Heo et "
    'al., "A comprehensive overhaul of feature distillation", ICCV 2019).',
    detects=True,
    build=lambda run, networks: OD(networks.pairs, networks.teacher.norms, run.od_weight),
)
class OD(nn.Module):
    """task = CE, od = weight * sum over the n stages of 2^(k - n) * `partial_squares`, a sum over
    (C, H, W); weight 1e-3.

    Weight and the halving from stage to stage are those of the authors' code for CIFAR-100. There
    the teacher runs in training mode, so that its BN uses the batch; here every method's teacher is
    the same frozen one in eval mode. Connectors: 1x1 conv and BN.
    """

    def __init__(self, pairs: Sequence[Pair], norms: Mapping[str, nn.BatchNorm2d], weight: float):
        super().__init__()
        self.weight = weight
        self.stages = nn.ModuleList(Stage(pair, norms[pair.teacher]) for pair in pairs)

    def forward(self, batch: Batch, student: Output, teacher: Output) -> dict[str, Tensor]:
        distances = [partial_squares(*stage(student, teacher)) for stage in self.stages]
        return {"task": batch.goal(student), "od": self.weight * halved_backwards(distances)}


@method(
    "ie-od",
    whole_batch=True,
    taught="teacher",
    fields=("od_weight", *SPLIT),
    compares=features.stages,
    reads="stages_pre",
    source="part of each stage's channels inherits the teacher's features before ReLU, the rest "
    "is pushed away from them to explore.",
    detects=True,
    build=lambda run, networks: IEOD(
        networks.pairs,
        networks.teacher.norms,
        run.od_weight,
        run.explore_weight,
        split=run.split,
        ratio=run.split_ratio,
        seed=run.seed,
    ),
)
class IEOD(nn.Module):
    """task = CE, inherit = weight * OD's loss of the inheriting half (sum over (C, H, W), weight
    1e-3: that of OD), explore = -explore_weight * sum over the stages of 2^(k - n) *
    `measures.partial_l2` of the other half (weight 50: that of IE-FT).

    OD's partial L2 has no lower bound when negated: the connector alone could grow without end.
    `measures.partial_l2` L2-normalises the features and takes the root, so it stays within
    0 .. 2 / sqrt(N), N = C H W; at weight 50 and N = 4096 the last stage starts near -1. Each half
    has its own connectors. With ratio 1 this is OD.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        norms: Mapping[str, nn.BatchNorm2d],
        weight: float,
        explore_weight: float,
        *,
        split: Literal["random", "halves"] = "random",
        ratio: float = 0.5,
        seed: int = 0,
    ):
        super().__init__()
        self.weight, self.explore_weight = weight, explore_weight
        inheriting, exploring = split_stages(pairs, ratio, split, seed)
        self.inherit = nn.ModuleList(
            Stage(pair, norms[pair.teacher], channels) for pair, channels in inheriting
        )
        self.explore = nn.ModuleList(
            Stage(pair, norms[pair.teacher], channels) for pair, channels in exploring
        )

    def forward(self, batch: Batch, student: Output, teacher: Output) -> dict[str, Tensor]:
        terms = {"task": batch.goal(student)}
        if self.inherit:
            terms["inherit"] = self.weight * halved_backwards(
                [partial_squares(*half(student, teacher)) for half in self.inherit]
            )
        if self.explore:
            away = [EXPLORE["partial-l2"](*half(student, teacher)) for half in self.explore]
            terms["explore"] = self.explore_weight * halved_backwards(away)
        return terms

    def parts(self, student: Output, teacher: Output) -> dict[str, Part]:
        """What each half compares at the last stage: features before ReLU, through its connector,
        with the teacher's.
        """
        losses = {"inherit": self._inherit, "explore": self._explore}
        found = {}
        for name, stages in (("inherit", self.inherit), ("explore", self.explore)):
            if stages:
                last = stages[-1]
                found[name] = Part(  # type: ignore[call-arg]
                    *last(student, teacher), losses[name], last.channels, last.pair.student
                )
        return found

    def _inherit(self, feature: Tensor, target: Tensor) -> Tensor:
        return self.weight * partial_squares(feature, target)

    def _explore(self, feature: Tensor, target: Tensor) -> Tensor:
        return self.explore_weight * EXPLORE["partial-l2"](feature, target)
