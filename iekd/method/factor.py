"""The factor: a compact code of the teacher's last feature, made by an auto-encoder that is trained
first, then frozen.

Three 3x3 convolutions down, three up, stride 1, each with batch normalisation and LeakyReLU(0.1);
only the second convolution of each side changes the number of channels. Source: descriptions of the
paper (we do not have its text) and the authors' code, after Factor Transfer's paraphraser. The
code's leading LeakyReLU is left out: the features are non-negative (they come after a ReLU), so it
does nothing.
"""

import math
from typing import Literal

from torch import Tensor, nn

from iekd.method.features import Batch
from iekd.method.registry import method
from iekd.networks import Output

SLOPE = 0.1  # of the LeakyReLU


def _block(inputs: int, outputs: int, transposed: bool = False) -> nn.Sequential:
    """3x3 convolution without bias, batch normalisation, LeakyReLU; weights with mean 0 and
    standard deviation sqrt(2 / (9 * outputs)), as in the authors' code.
    """
    make = nn.ConvTranspose2d if transposed else nn.Conv2d
    convolution = make(inputs, outputs, 3, stride=1, padding=1, bias=False)
    nn.init.normal_(convolution.weight, 0, math.sqrt(2 / (9 * outputs)))
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.LeakyReLU(SLOPE))


class Encoder(nn.Sequential):
    """Feature (B, channels, H, W) -> factor (B, factor_channels, H, W). The teacher's, or that of
    one student half.
    """

    def __init__(self, channels: int, factor_channels: int):
        super().__init__(
            _block(channels, channels),
            _block(channels, factor_channels),
            _block(factor_channels, factor_channels),
        )
        self.factor_channels = factor_channels

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The normalisation before the last LeakyReLU; partial L2 takes its margin from it."""
        return self[-1][1]


def factor_channels(channels: int, ratio: float) -> int:
    """Channels of the factor of a feature."""
    return max(1, round(channels * ratio))


class FactorAutoEncoder(nn.Module):
    """The teacher's auto-encoder; after training only its encoder is used."""

    def __init__(
        self,
        channels: int,
        ratio: float = 0.5,
        decoder: Literal["transposed", "conv"] = "transposed",
    ):
        super().__init__()
        narrow, transposed = factor_channels(channels, ratio), decoder == "transposed"
        self.encoder = Encoder(channels, narrow)
        self.decoder = nn.Sequential(
            _block(narrow, narrow, transposed),
            _block(narrow, channels, transposed),
            _block(channels, channels, transposed),
        )

    def forward(self, feature: Tensor) -> Tensor:
        """The reconstruction R(f_T), of the feature's shape."""
        return self.decoder(self.encoder(feature))


@method(
    "factor-ae",
    label="Factor auto-encoder",
    taught="teacher",
    fields=("factor_ratio", "reconstruction", "decoder"),
    reads="last",
    detects=True,
    build=lambda run, networks: FactorAE(
        networks.teacher.feature_channels, run.factor_ratio, run.decoder, run.reconstruction
    ),
)
class FactorAE(nn.Module):
    """reconstruction = ||f_T - R(f_T)||^2 (described) or |f_T - R(f_T)| (authors' code), mean over
    batch and dimensions.
    """

    def __init__(
        self,
        channels: int,
        ratio: float,
        decoder: Literal["transposed", "conv"],
        reconstruction: Literal["l2", "l1"],
    ):
        super().__init__()
        self.autoencoder = FactorAutoEncoder(channels, ratio, decoder)
        self.power = 2 if reconstruction == "l2" else 1

    def forward(self, batch: Batch, student: None, teacher: Output) -> dict[str, Tensor]:
        error = self.autoencoder(teacher.feature) - teacher.feature
        return {"reconstruction": error.abs().pow(self.power).mean()}
