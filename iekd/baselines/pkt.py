"""PKT: how probable each image is as a neighbour of another is the same for both networks (Passalis
and Tefas, "Learning deep representations with probabilistic knowledge transfer", ECCV 2018).
"""

from torch import Tensor, nn

from iekd.method import measures
from iekd.method.features import Batch
from iekd.method.registry import method
from iekd.networks import Output

TINY = 1e-7  # added to the kernel, whose logarithm would be infinite for opposite vectors


def neighbours(embedding: Tensor) -> Tensor:
    """p(j | i), j != i, proportional to the kernel K = (1 + cos(x_i, x_j)) / 2. (B, D) -> (B, B -
    1), rows sum to 1.
    """
    x = measures.unit(embedding)
    kernel = off_diagonal((x @ x.T + 1) / 2 + TINY)
    return kernel / kernel.sum(1, keepdim=True)


def off_diagonal(matrix: Tensor) -> Tensor:
    """The rows of a square matrix (n, n) without their diagonal entries: (n, n - 1)."""
    n = len(matrix)
    return (
        matrix.flatten()[1:].view(n - 1, n + 1)[:, :-1].reshape(n, n - 1)
        if n > 1
        else matrix[:, 1:]
    )


@method(
    "pkt",
    whole_batch=True,
    taught="teacher",
    fields=("pkt_weight",),
    reads="pooled",
    build=lambda run, networks: PKT(run.pkt_weight),
)
class PKT(nn.Module):
    """task = CE, pkt = weight * sum over i != j of p_T log(p_T / p_S) / (B (B - 1)), on the pooled
    features; weight 30000.

    The paper's divergence is the sum over all pairs. Weight: Tian et al. 2020 (RepDistiller) for
    CIFAR-100, with the mean over all B x B pairs, including the pairs of an image with itself (the
    paper leaves them out). A divergence per pair falls like 1/B: at B = 128 a mean over pairs is
    about half of what it is at their 64.
    """

    def __init__(self, weight: float):
        super().__init__()
        self.weight = weight

    def forward(self, batch: Batch, student: Output, teacher: Output) -> dict[str, Tensor]:
        p, q = neighbours(teacher.features["pooled"]), neighbours(student.features["pooled"])
        divergence = (p * (p.log() - q.log())).sum() / max(1, p.numel())
        return {"task": batch.goal(student), "pkt": self.weight * divergence}
