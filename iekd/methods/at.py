"""AT: the student looks where the teacher looks (Zagoruyko and Komodakis, "Paying more attention to attention", ICLR 2017, eq. 2)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from iekd import measures
from iekd.methods.batch import Batch
from iekd.methods.pairs import Pair
from iekd.networks import Output


def attention(feature: Tensor) -> Tensor:
    """Q = sum over the channels of |A_c|^2, (B, C, H, W) -> (B, H, W), up to a positive number per sample, so that no square overflows."""
    return measures.divide_by_largest(feature, dim=(1, 2, 3)).square().sum(1)


def attention_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """mean over batch and positions of (Q_S / ||Q_S||_2 - Q_T / ||Q_T||_2)^2, for features of any number of channels; 0 .. 2 / (H W)."""
    return map_distance(attention(student), attention(teacher))


def map_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """The same for two attention maps (B, H, W)."""
    return (measures.unit(student) - measures.unit(teacher)).square().mean()


class AT(nn.Module):
    """task = CE, at = weight * sum over the stages of `attention_distance`, each a mean over batch and positions; weight 1000.

    The paper sets beta to 10^3 over the elements of the map and of the batch, which is this mean. Its eq. 2 has beta / 2 and a norm that
    is not squared, whose gradient has no limit at equality; the authors' code (beta 1e3 for the paper's CIFAR-10 table) squares and has
    no half: so here. That code takes the bare sums of its pre-activation networks; here it is what follows the ReLU.
    """

    def __init__(self, pairs: Sequence[Pair], weight: float):
        super().__init__()
        self.pairs, self.weight = pairs, weight

    def forward(self, batch: Batch, student: Output, teacher: Output) -> dict[str, Tensor]:
        distance = sum(attention_distance(student.features[p.student], teacher.features[p.teacher]) for p in self.pairs)
        return {"task": F.cross_entropy(student.logits, batch.labels), "at": self.weight * distance}
