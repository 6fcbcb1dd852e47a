"""Plain training on the labels: the student alone, and every teacher."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from iekd.method.features import Batch
from iekd.networks import Output


class Supervised(nn.Module):
    """task = CE(logits, batch.labels), batch mean."""

    def forward(self, batch: Batch, student: Output, teacher: Output | None) -> dict[str, Tensor]:
        return {"task": F.cross_entropy(student.logits, batch.labels)}
