"""NST: the channels of both networks are selective for the same places (Huang and Wang, "Like what
you like: knowledge distill via neuron selectivity transfer", arXiv 1707.01219).
"""

from torch import Tensor, nn

from iekd.method import features, measures
from iekd.method.features import Batch, Pair
from iekd.method.registry import method
from iekd.networks import Output


def second_moment(feature: Tensor) -> Tensor:
    """Mean over the channels of f f^T, f a channel's map of H*W values scaled to norm 1. (B, C, H,
    W) -> (B, H*W, H*W).
    """
    maps = measures.unit(feature.reshape(-1, feature.shape[2] * feature.shape[3])).view(
        *feature.shape[:2], -1
    )
    return maps.transpose(1, 2) @ maps / feature.shape[1]


def squared_mmd(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared maximum mean discrepancy between the channels' maps with the kernel k(x, y) =
    (x.y)^2, mean over the batch; 0 .. 2.

    The paper writes it as three mean kernels. For this kernel they are ||E[s s^T] - E[t t^T]||_F^2,
    which cannot become negative.
    """
    return (second_moment(student) - second_moment(teacher)).square().sum((1, 2)).mean()


@method(
    "nst",
    taught="teacher",
    fields=("nst_weight",),
    compares=features.last,
    reads="stages",
    detects=True,
    build=lambda run, networks: NST(networks.pairs[0], run.nst_weight),
)
class NST(nn.Module):
    """task = CE, nst = weight * `squared_mmd` of the last stage, after ReLU; weight 50 (Tian et al.
    2020, RepDistiller, for CIFAR-100).

    The paper's best kernel: polynomial, d = 2, c = 0; its weight is lambda / 2. One pair of layers,
    the last, as in the paper; RepDistiller sums over all stages. The numbers of channels may
    differ; height and width may not.
    """

    def __init__(self, pair: Pair, weight: float):
        super().__init__()
        self.pair, self.weight = pair, weight

    def forward(self, batch: Batch, student: Output, teacher: Output) -> dict[str, Tensor]:
        distance = squared_mmd(
            student.features[self.pair.student], teacher.features[self.pair.teacher]
        )
        return {"task": batch.goal(student), "nst": self.weight * distance}
