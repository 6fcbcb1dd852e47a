"""FT: the student's whole feature, translated by an encoder of its own, matches the teacher's factor (Kim, Park, Kwak 2018)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from iekd import measures
from iekd.factor import Encoder
from iekd.methods.batch import Batch
from iekd.methods.parts import Part
from iekd.networks import Output


class FT(nn.Module):
    """task = CE, ft = weight * L1(F_S, F_T), the mean over batch and dimensions of normalised factors; weight 500 as in the authors' code.

    The translator is trained jointly with the student. Mean over N = C*H*W values: at N = 2048 and weight 500 the term starts near 10.
    """

    def __init__(self, channels: int, factor_channels: int, weight: float):
        super().__init__()
        self.encoder, self.weight = Encoder(channels, factor_channels), weight

    def parts(self, student: Output, teacher: Output) -> dict[str, Part]:
        """The student's factor with the teacher's, both (B, K, H, W)."""
        return {"ft": Part(self.encoder(student.feature), teacher.features["factor"], self._distance)}

    def forward(self, batch: Batch, student: Output, teacher: Output) -> dict[str, Tensor]:
        terms = {name: part.value for name, part in self.parts(student, teacher).items()}
        return {"task": F.cross_entropy(student.logits, batch.labels), **terms}

    def _distance(self, factor: Tensor, target: Tensor) -> Tensor:
        return self.weight * measures.l1(factor, target)
