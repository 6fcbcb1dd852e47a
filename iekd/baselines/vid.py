"""VID: the student's features tell as much as possible about the teacher's (Ahn et al.,
"Variational information distillation for knowledge transfer", CVPR 2019).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iekd.method import features
from iekd.method.features import Batch, Pair
from iekd.method.registry import method
from iekd.networks import Output
from iekd.networks.common import he_init

VARIANCE, LEAST = 5.0, 1e-5  # the initial variance, and what is added to softplus


class Gaussian(nn.Module):
    """q(t | s): mean mu(s) by three 1x1 convolutions, one variance per channel of the teacher,
    softplus(alpha_c) + `LEAST`.
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        hidden = 2 * outputs
        self.mean = nn.Sequential(
            *(nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU()),
            *(nn.Conv2d(hidden, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU()),
            nn.Conv2d(hidden, outputs, 1),
        )
        he_init(self)
        self.alpha = nn.Parameter(torch.full((outputs,), math.log(math.expm1(VARIANCE - LEAST))))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """-log q(t | s) without the constant log(2 pi) / 2, mean over batch, channels and
        positions. (B, C, H, W) each.
        """
        variance = (F.softplus(self.alpha) + LEAST)[:, None, None]
        return 0.5 * ((teacher - self.mean(student)).square() / variance + variance.log()).mean()


@method(
    "vid",
    taught="teacher",
    fields=("vid_weight",),
    compares=features.stages,
    reads="stages",
    detects=True,
    build=lambda run, networks: VID(networks.pairs, run.vid_weight),
)
class VID(nn.Module):
    """task = CE, vid = weight * sum over the stages of -log q(t | s), each a mean over batch and
    dimensions; weight 1.

    The paper sums over a feature's values; weight 1 and the mean are those of Tian et al. 2020
    (RepDistiller, after the authors' code, CIFAR-100) and of Knowledge-Distillation-Zoo (CIFAR-10).
    Neither has BN in mu, and both make it as wide as its output, which the latter notes as its
    deviation from the paper; here mu has BN and twice that width. (The paper names four layers,
    each at the end of a group of blocks; these networks have three.) The term is a log density: it
    falls below 0 where mu fits well.
    """

    def __init__(self, pairs: Sequence[Pair], weight: float):
        super().__init__()
        self.pairs, self.weight = pairs, weight
        self.densities = nn.ModuleList(
            Gaussian(pair.student_channels, pair.teacher_channels) for pair in pairs
        )

    def forward(self, batch: Batch, student: Output, teacher: Output) -> dict[str, Tensor]:
        features = (
            (student.features[pair.student], teacher.features[pair.teacher]) for pair in self.pairs
        )
        surprise = sum(
            density(*both) for density, both in zip(self.densities, features, strict=True)
        )
        return {"task": batch.goal(student), "vid": self.weight * surprise}
