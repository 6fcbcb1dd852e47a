"""KD: the student matches the teacher's softened class probabilities (Hinton, Vinyals, Dean 2015,
eq. 1 and section 2).
"""

from torch import Tensor, nn

from iekd.method.features import Batch
from iekd.method.measures import soft_divergence
from iekd.method.registry import method
from iekd.networks import Output


@method(
    "kd",
    taught="teacher",
    fields=("kd_alpha", "kd_temperature"),
    build=lambda run, networks: KD(run.kd_alpha, run.kd_temperature),
)
class KD(nn.Module):
    """task = (1 - alpha) CE, kd = alpha T^2 KL. Weights of the authors' code: CIFAR-10 alpha 0.95,
    T 20; CIFAR-100 alpha 0.9, T 4.
    """

    def __init__(self, alpha: float, temperature: float):
        super().__init__()
        self.alpha, self.temperature = alpha, temperature

    def forward(self, batch: Batch, student: Output, teacher: Output) -> dict[str, Tensor]:
        task = batch.goal(student)
        return {
            "task": (1 - self.alpha) * task,
            "kd": self.alpha * soft_divergence(student.logits, teacher.logits, self.temperature),
        }
