"""The methods: each a module that owns its trainable parts and turns (batch, student, teacher) into named loss terms.

`forward(batch: Batch, student: Output, teacher: Output | None) -> dict[str, scalar Tensor]`; the loop minimises their sum and knows
no method by name. The teacher's output is without gradient; its `features["factor"]` is there when the method has an auto-encoder.
"""

from __future__ import annotations

from torch import nn

from iekd.config import RunConfig
from iekd.factor import FactorAutoEncoder
from iekd.methods.batch import Batch
from iekd.methods.factor_ae import FactorAE
from iekd.methods.ft import FT
from iekd.methods.ie import IEFT
from iekd.methods.kd import KD
from iekd.methods.supervised import Supervised

__all__ = ["Batch", "build"]


def build(config: RunConfig, student: nn.Module | None, teacher: nn.Module | None, autoencoder: FactorAutoEncoder | None) -> nn.Module:
    """The method a configuration names, with fresh parts for these networks."""
    match config.method:
        case "supervised":
            return Supervised()
        case "factor-ae":
            return FactorAE(teacher.feature_channels, config.factor_ratio, config.decoder, config.reconstruction)
        case "kd":
            return KD(config.kd_alpha, config.kd_temperature)
        case "ft":
            return FT(student.feature_channels, autoencoder.encoder.factor_channels, config.ft_weight)
        case "ie-ft":
            return IEFT(
                student.feature_channels, autoencoder.encoder, inherit=config.inherit, explore=config.explore,
                inherit_weight=config.inherit_weight, explore_weight=config.explore_weight,
                split=config.split, ratio=config.split_ratio, seed=config.seed,
                explore_target=config.explore_target, explore_encoder=config.explore_encoder,
            )  # fmt: skip
