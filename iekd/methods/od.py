"""OD: the student's features before ReLU match the teacher's, as far as they count (Heo et al., "A comprehensive overhaul of feature
distillation", ICCV 2019)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iekd import measures
from iekd.methods.batch import Batch
from iekd.methods.pairs import Pair, connector, halved_backwards
from iekd.networks import Output


def partial_squares(student: Tensor, teacher: Tensor) -> Tensor:
    """Partial L2: squared differences, 0 where student <= teacher <= 0, summed over (C, H, W), mean over the batch."""
    forgiven = (student <= teacher) & (teacher <= 0)
    return torch.where(forgiven, 0, (student - teacher).square()).sum((1, 2, 3)).mean()


class Stage(nn.Module):
    """The two sides of one stage before ReLU: the student through a connector, the teacher through its margin ReLU.

    The margin is the expected negative response of each of the teacher's channels, from the last BN before the ReLU;
    for a ResNet, as in the authors' code, that leaves out what the shortcut adds. `channels` selects some of the student's.
    """

    def __init__(self, pair: Pair, norm: nn.BatchNorm2d, channels: Tensor | None = None):
        super().__init__()
        self.pair = pair
        self.connector = connector(pair.student_channels if channels is None else len(channels), pair.teacher_channels)
        self.register_buffer("channels", channels)
        self.register_buffer("margin", measures.expected_negative(norm))

    def forward(self, student: Output, teacher: Output) -> tuple[Tensor, Tensor]:
        """Student and teacher, both of the teacher's shape (B, C, H, W)."""
        feature = student.features[f"{self.pair.student}_pre"]
        feature = feature if self.channels is None else feature.index_select(1, self.channels)
        return self.connector(feature), measures.margin_relu(teacher.features[f"{self.pair.teacher}_pre"], self.margin)


class OD(nn.Module):
    """task = CE, od = weight * sum over the n stages of 2^(k - n) * `partial_squares`, a *sum* over (C, H, W); weight 1e-3.

    Weight and the halving from stage to stage are those of the authors' code for CIFAR-100. There the teacher runs in training mode,
    so that its BN uses the batch; here every method's teacher is the same frozen one in eval mode. Connectors: 1x1 conv and BN.
    """

    def __init__(self, pairs: Sequence[Pair], norms: Mapping[str, nn.BatchNorm2d], weight: float):
        super().__init__()
        self.weight = weight
        self.stages = nn.ModuleList(Stage(pair, norms[pair.teacher]) for pair in pairs)

    def forward(self, batch: Batch, student: Output, teacher: Output) -> dict[str, Tensor]:
        distances = [partial_squares(*stage(student, teacher)) for stage in self.stages]
        return {"task": F.cross_entropy(student.logits, batch.labels), "od": self.weight * halved_backwards(distances)}
