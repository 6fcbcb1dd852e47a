"""The run that trains a teacher's factor auto-encoder: the student here is the auto-encoder itself, and labels play no part."""

from __future__ import annotations

from torch import Tensor, nn

from iekd.factor import FactorAutoEncoder
from iekd.methods.batch import Batch
from iekd.networks import Output


class FactorAE(nn.Module):
    """reconstruction = ||f_T - R(f_T)||^2 (described) or |f_T - R(f_T)| (authors' code), mean over batch and dimensions."""

    def __init__(self, channels: int, ratio: float, decoder: str, reconstruction: str):
        super().__init__()
        self.autoencoder = FactorAutoEncoder(channels, ratio, decoder)
        self.power = 2 if reconstruction == "l2" else 1

    def forward(self, batch: Batch, student: None, teacher: Output) -> dict[str, Tensor]:
        error = self.autoencoder(teacher.feature) - teacher.feature
        return {"reconstruction": error.abs().pow(self.power).mean()}
