"""Tf-KD: KD with a teacher that is defined by hand instead of trained (Yuan et al., "Revisiting
knowledge distillation via label smoothing regularization", CVPR 2020, section 5, the form
Tf-KD_reg).

Its other form, Tf-KD_self, is KD with a trained copy of the student as teacher: an ordinary run of
method `kd` whose teacher and student have the same name. The IE-KD supplement does not say which
form its table uses; its values for one student listed with two teachers differ, although neither
form has another teacher to learn from.
"""

import math

import torch
from torch import Tensor, nn

from iekd.method.features import Batch
from iekd.method.measures import soft_divergence
from iekd.method.registry import method
from iekd.networks import Output

CORRECT = 0.99  # a: the virtual teacher's probability of the right class (authors' code)


def virtual_teacher(labels: Tensor, classes: int) -> Tensor:
    """log p^d, (B,) -> (B, classes): a for the right class, (1 - a) / (K - 1) for each other. Used
    as logits, they give p^d.
    """
    wrong = math.log((1 - CORRECT) / (classes - 1))
    right = labels[:, None] == torch.arange(classes, device=labels.device)
    return torch.where(right, math.log(CORRECT), wrong)


@method(
    "tf-kd",
    label="Tf-KD",
    fields=("tfkd_weight", "tfkd_temperature"),
    build=lambda run, networks: TfKD(run.tfkd_weight, run.tfkd_temperature),
)
class TfKD(nn.Module):
    """task = (1 - alpha) CE, kd = alpha T^2 KL(p^d_T || p_T), batch mean; alpha 0.1 and T 20, the
    authors' ResNet-18 on CIFAR-100.

    T^2 is as in KD, and in the authors' code for KD. For this form their code softens probabilities
    as if they were logits, which makes the target almost uniform, and leaves the student at T = 1:
    label smoothing. Here, as in the paper, both are at T.
    """

    def __init__(self, weight: float, temperature: float):
        super().__init__()
        self.weight, self.temperature = weight, temperature

    def forward(self, batch: Batch, student: Output, teacher: None) -> dict[str, Tensor]:
        target = virtual_teacher(batch.labels, student.logits.shape[1])
        task, divergence = (
            batch.goal(student),
            soft_divergence(student.logits, target, self.temperature),
        )
        return {"task": (1 - self.weight) * task, "kd": self.weight * divergence}
