"""FitNet: first a hint for the student's middle, then KD (Romero et al., "FitNets: hints for thin
deep nets", ICLR 2015).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iekd.method import features
from iekd.method.features import Batch, Pair, connector
from iekd.method.measures import soft_divergence
from iekd.method.registry import method
from iekd.networks import Output

TEMPERATURE = 3.0  # tau
FIRST, LAST = 4.0, 1.0  # lambda, the weight of the soft targets, falls linearly


@method(
    "fitnet",
    label="FitNet",
    taught="teacher",
    fields=("fitnet_weight", "init_epochs"),
    compares=features.middle,
    reads="stages",
    build=lambda run, networks: FitNet(
        networks.pairs[0], run.fitnet_weight, run.init_epochs, run.epochs
    ),
)
class FitNet(nn.Module):
    """Stage 1 (eq. 3): hint = weight * mean (r(v) - u)^2 of the middle stage v of the student and u
    of the teacher, after ReLU. Stage 2 (eq. 2): task = CE, kd = lambda * KL(teacher || student) at
    temperature 3, without T^2; batch mean, lambda from 4 to 1.

    The first `init_epochs` of the run's `epochs` are stage 1, as in AB, in which the student above
    the guided layer is not updated; in stage 2 the regressor r, a 1x1 conv with BN and ReLU, is
    not. The paper's hint loss is half the sum of squares, under RMSProp; under our SGD it is a mean
    with weight 100, which RepDistiller publishes for CIFAR-100. RepDistiller has no stages: it adds
    that term to CE throughout. Temperature and lambda are those of the authors' code for CIFAR-10.
    """

    def __init__(self, pair: Pair, weight: float, init_epochs: int, epochs: int):
        super().__init__()
        self.pair, self.weight, self.init_epochs, self.epochs = pair, weight, init_epochs, epochs
        self.regressor = nn.Sequential(
            connector(pair.student_channels, pair.teacher_channels), nn.ReLU()
        )
        # the current lambda; a CUDA graph reads it from the device
        self.register_buffer("soft", torch.tensor(torch.nan), persistent=False)

    def phase(self, epoch: int) -> bool:
        return epoch >= self.init_epochs

    def begin(self, epoch: int) -> None:
        self.soft.fill_(self.soft_weight(epoch))

    def forward(self, batch: Batch, student: Output, teacher: Output) -> dict[str, Tensor]:
        if not self.phase(batch.epoch):
            guided = self.regressor(student.features[self.pair.student])
            return {"hint": self.weight * F.mse_loss(guided, teacher.features[self.pair.teacher])}
        divergence = soft_divergence(student.logits, teacher.logits, TEMPERATURE) / TEMPERATURE**2
        return {"task": batch.goal(student), "kd": self.soft * divergence}

    def soft_weight(self, epoch: int) -> float:
        """lambda in an epoch of stage 2: 4 in its first, 1 in its last."""
        progress = (epoch - self.init_epochs) / max(1, self.epochs - 1 - self.init_epochs)
        return FIRST + (LAST - FIRST) * progress
