"""CC: the correlations between the images of a batch agree (Peng et al., "Correlation congruence
for knowledge distillation", ICCV 2019).
"""

import math

from torch import Tensor, nn

from iekd.method import measures
from iekd.method.features import Batch
from iekd.method.registry import method
from iekd.networks import Output

GAMMA, ORDER = 0.4, 2  # of the Gaussian RBF and of its Taylor series


def correlation(embedding: Tensor) -> Tensor:
    """exp(-gamma ||x - y||^2) between unit embeddings, as its Taylor series in x.y up to `ORDER`.
    (B, D) -> (B, B).

    For unit x, y it is exp(-2 gamma) * sum over p of (2 gamma x.y)^p / p!.
    """
    x = measures.unit(embedding)
    scaled = 2 * GAMMA * (x @ x.T)
    return math.exp(-2 * GAMMA) * sum(scaled**p / math.factorial(p) for p in range(ORDER + 1))


@method(
    "cc",
    whole_batch=True,
    taught="teacher",
    fields=("cc_weight",),
    reads="pooled",
    build=lambda run, networks: CC(run.cc_weight),
)
class CC(nn.Module):
    """task = CE, cc = weight * mean over the B x B entries of (C_T - C_S)^2, on the pooled
    features; weight 100.

    The paper adds KD, and samples batches by class; as in other comparisons, this is the
    correlation term alone, on plain batches. No weight for this form could be read from the paper;
    100 is what Knowledge-Distillation-Zoo uses for it on CIFAR-10. (RepDistiller's CC is another
    formula, products of |f_S - f_T| of neighbours in the batch; its weight of 0.02 belongs to that
    one.)
    """

    def __init__(self, weight: float):
        super().__init__()
        self.weight = weight

    def forward(self, batch: Batch, student: Output, teacher: Output) -> dict[str, Tensor]:
        distance = (
            (correlation(teacher.features["pooled"]) - correlation(student.features["pooled"]))
            .square()
            .mean()
        )
        return {"task": batch.goal(student), "cc": self.weight * distance}
