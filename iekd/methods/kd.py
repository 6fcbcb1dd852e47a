"""KD: the student matches the teacher's softened class probabilities (Hinton, Vinyals, Dean 2015, eq. 1 and section 2)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from iekd.methods.batch import Batch
from iekd.networks import Output


def soft_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)) of logits (B, classes), batch mean; T^2 keeps the gradient's size."""
    log_student, log_teacher = F.log_softmax(student / temperature, 1), F.log_softmax(teacher / temperature, 1)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2


class KD(nn.Module):
    """task = (1 - alpha) CE, kd = alpha T^2 KL. Weights of the authors' code: CIFAR-10 alpha 0.95, T 20; CIFAR-100 alpha 0.9, T 4."""

    def __init__(self, alpha: float, temperature: float):
        super().__init__()
        self.alpha, self.temperature = alpha, temperature

    def forward(self, batch: Batch, student: Output, teacher: Output) -> dict[str, Tensor]:
        task = F.cross_entropy(student.logits, batch.labels)
        return {"task": (1 - self.alpha) * task, "kd": self.alpha * soft_divergence(student.logits, teacher.logits, self.temperature)}
