"""RKD: distances and angles between the images of a batch agree (Park et al., "Relational knowledge
distillation", CVPR 2019).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iekd.method import measures
from iekd.method.features import Batch
from iekd.method.registry import method
from iekd.networks import Output


def differences(embedding: Tensor) -> Tensor:
    """t_i - t_j up to a common factor, which affects neither relation. (B, D) -> (B, B, D)."""
    x = measures.divide_by_largest(embedding, dim=(0, 1))
    return x[:, None] - x[None, :]


def distances(difference: Tensor) -> Tensor:
    """psi_D(i, j) = ||t_i - t_j|| / mu, mu its mean over i != j. (B, B, D) -> (B, B); all zero
    where all are equal.
    """
    n, squares = len(difference), difference.square().sum(2)
    same = squares == 0
    lengths = torch.where(same, 0, torch.where(same, 1, squares).sqrt())  # gradient 0 at 0
    mean = lengths.sum() / max(1, n * (n - 1))
    return lengths / torch.where(mean == 0, 1, mean)


def angles(difference: Tensor) -> Tensor:
    """psi_A(i, j, k) = cos of the angle at j between i and k, in entry [j, i, k]. (B, B, D) -> (B,
    B, B); 0 where i = k.
    """
    n, size = len(difference), difference.shape[2]
    # [j, i] points from i to j: both signs cancel
    direction = measures.unit(difference.reshape(n * n, size)).view(n, n, size)
    distinct = 1 - torch.eye(n, dtype=direction.dtype, device=direction.device)
    return direction @ direction.transpose(1, 2) * distinct


@method(
    "rkd",
    whole_batch=True,
    taught="teacher",
    fields=("rkd_weight",),
    reads="pooled",
    build=lambda run, networks: RKD(run.rkd_weight),
)
class RKD(nn.Module):
    """task = CE, distance = lambda_D * Huber of psi_D, angle = lambda_A * Huber of psi_A, each the
    mean over distinct images.

    lambda_D = 25 = `weight` and lambda_A = 50, always twice as much: the paper's for
    classification, on the pooled features. Its equations sum over all pairs and triples; the
    authors' code takes the mean over all B^2 and B^3, which barely differs from that over distinct
    ones, as in the equations (at B = 128 the latter is 1 % and 2 % larger). One batch needs memory
    for B^3 + B^2 D values.
    """

    def __init__(self, weight: float):
        super().__init__()
        self.weight = weight

    def forward(self, batch: Batch, student: Output, teacher: Output) -> dict[str, Tensor]:
        ours, theirs = (differences(output.features["pooled"]) for output in (student, teacher))
        pairs = len(batch.labels) * (len(batch.labels) - 1)
        distance = F.smooth_l1_loss(distances(ours), distances(theirs), reduction="sum") / max(
            1, pairs
        )
        angle = F.smooth_l1_loss(angles(ours), angles(theirs), reduction="sum") / max(
            1, pairs * (len(batch.labels) - 2)
        )
        task = batch.goal(student)
        return {"task": task, "distance": self.weight * distance, "angle": 2 * self.weight * angle}
