"""DML: two networks, both from scratch, teach each other (Zhang, Xiang, Hospedales, Lu, "Deep mutual learning", CVPR 2018)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iekd.methods.batch import Batch
from iekd.methods.kd import soft_divergence
from iekd.networks import Output


class DML(nn.Module):
    """For each network: task = CE, dml = weight * KL(p_other || p_own) at temperature 1, batch mean; weight 1.

    The other's probabilities are a constant. One network is updated after the other, the second learns from what the first has become
    (its algorithm), by a fresh forward pass in training mode: the first's BN statistics see every batch twice.
    IE-KD's code: 200 epochs, batch 64, rate divided by 10 at epochs 60, 120 and 180.
    """

    def __init__(self, weight: float):
        super().__init__()
        self.weight = weight

    def updates(self, batch: Batch, images: Tensor, student: nn.Module, peer: nn.Module) -> Iterator[tuple[str, Output, dict[str, Tensor]]]:
        ours, theirs = student(images), peer(images)
        yield "student", ours, self.terms(batch, ours, theirs)
        with torch.no_grad():
            renewed = student(images)
        yield "peer", theirs, self.terms(batch, theirs, renewed)  # the peer is as it was: its forward pass still holds

    def terms(self, batch: Batch, own: Output, other: Output) -> dict[str, Tensor]:
        divergence = soft_divergence(own.logits, other.logits.detach(), temperature=1)
        return {"task": F.cross_entropy(own.logits, batch.labels), "dml": self.weight * divergence}
