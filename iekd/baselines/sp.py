"""SP: inputs that are alike for the teacher are alike for the student (Tung and Mori,
"Similarity-preserving knowledge distillation", ICCV 2019).
"""

from torch import Tensor, nn

from iekd.method import measures
from iekd.method.features import Batch
from iekd.method.registry import method
from iekd.networks import Output


def similarity(feature: Tensor) -> Tensor:
    """G: the products Q Q^T of the flattened features (B, C*H*W), each row scaled to norm 1. (B,
    ...) -> (B, B).
    """
    # one common factor: G does not change and cannot overflow
    flat = measures.divide_by_largest(feature.flatten(1), dim=(0, 1))
    return measures.unit(flat @ flat.T)


@method(
    "sp",
    whole_batch=True,
    taught="teacher",
    fields=("sp_weight",),
    reads="last",
    build=lambda run, networks: SP(run.sp_weight),
)
class SP(nn.Module):
    """task = CE, sp = weight * ||G_T - G_S||_F^2 / B^2, the mean over the B x B entries;
    weight 3000, the paper's for CIFAR-10.

    Taken from the last stage, after ReLU. Channels, height and width of the two networks may
    differ.
    """

    def __init__(self, weight: float):
        super().__init__()
        self.weight = weight

    def forward(self, batch: Batch, student: Output, teacher: Output) -> dict[str, Tensor]:
        distance = (similarity(teacher.feature) - similarity(student.feature)).square().mean()
        return {"task": batch.goal(student), "sp": self.weight * distance}
