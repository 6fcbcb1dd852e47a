"""FT: the student's whole feature, translated by an encoder of its own, matches the teacher's factor (Kim, Park, Kwak 2018)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from iekd import measures
from iekd.factor import Encoder
from iekd.methods.batch import Batch
from iekd.networks import Output


class FT(nn.Module):
    """task = CE, ft = weight * L1(F_S, F_T), the mean over batch and dimensions of normalised factors; weight 500 as in the authors' code.

    The translator is trained jointly with the student. Mean over N = C*H*W values: at N = 2048 and weight 500 the term starts near 10.
    """

    def __init__(self, channels: int, factor_channels: int, weight: float):
        super().__init__()
        self.encoder, self.weight = Encoder(channels, factor_channels), weight

    def forward(self, batch: Batch, student: Output, teacher: Output) -> dict[str, Tensor]:
        factor = self.encoder(student.feature)
        return {"task": F.cross_entropy(student.logits, batch.labels), "ft": self.weight * measures.l1(factor, teacher.features["factor"])}
