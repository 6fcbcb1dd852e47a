"""AB: first the student learns which of the teacher's neurons are active, then the labels (Heo et
al., "Knowledge transfer via distillation of activation boundaries formed by hidden neurons", AAAI
2019).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from iekd.method import features
from iekd.method.features import Batch, Pair, connector, halved_backwards
from iekd.method.registry import method
from iekd.networks import Output

MARGIN = 1.0  # mu of the paper


def boundary_squares(student: Tensor, teacher: Tensor) -> Tensor:
    """The paper's alternative loss, a squared hinge: where the teacher is active (> 0) relu(mu -
    student)^2, elsewhere relu(mu + student)^2; summed over (C, H, W), mean over the batch. Features
    before ReLU, of equal shape.
    """
    side = torch.where(teacher > 0, 1.0, -1.0)
    return (MARGIN - side * student).relu().square().sum((1, 2, 3)).mean()


@method(
    "ab",
    taught="teacher",
    fields=("ab_weight", "init_epochs"),
    compares=features.stages,
    reads="stages_pre",
    detects=True,
    build=lambda run, networks: AB(networks.pairs, run.ab_weight, run.init_epochs),
)
class AB(nn.Module):
    """Stage 1: ab = weight * sum over the n stages of 2^(k - n) * `boundary_squares`, a sum over
    (C, H, W); weight 3e-3. Stage 2: task = CE.

    The first `init_epochs` of the run's `epochs` are stage 1 (by default an eighth, as
    RepDistiller's 30 to 240), so that every method gets the same number of epochs and one
    learning-rate schedule; the classifier is not updated in stage 1, nor the connectors in stage 2.
    Weight and the halving from stage to stage are those of the authors' code for CIFAR-10, and so
    is the connector: 1x1 conv and BN, only where the widths differ. Stage 2 is the paper's plain
    version (it also shows KD), so that any difference is due to the method.
    """

    def __init__(self, pairs: Sequence[Pair], weight: float, init_epochs: int):
        super().__init__()
        self.pairs, self.weight, self.init_epochs = pairs, weight, init_epochs
        widths = [(p.student_channels, p.teacher_channels) for p in pairs]
        self.connectors = nn.ModuleList(
            nn.Identity() if ours == theirs else connector(ours, theirs) for ours, theirs in widths
        )

    def phase(self, epoch: int) -> bool:
        return epoch >= self.init_epochs

    def forward(self, batch: Batch, student: Output, teacher: Output) -> dict[str, Tensor]:
        if self.phase(batch.epoch):
            return {"task": batch.goal(student)}
        distances = [
            boundary_squares(
                connect(student.features[f"{pair.student}_pre"]),
                teacher.features[f"{pair.teacher}_pre"],
            )
            for connect, pair in zip(self.connectors, self.pairs, strict=True)
        ]
        return {"ab": self.weight * halved_backwards(distances)}
