"""The methods: each a module that owns its trainable parts and turns (batch, student, teacher) into named loss terms.

`forward(batch: Batch, student: Output, teacher: Output | None) -> dict[str, scalar Tensor]`; the loop minimises their sum and knows
no method by name. Two networks that teach each other (DML, IE-DML) need several updates a batch: there the method has, instead,
`updates(batch, images, student, peer)`, a generator of (whose, output or None, terms); the loop makes an update after each.
The teacher's output is without gradient; its `features["factor"]` is there when the method has an auto-encoder.
What `forward` does depends on the epoch at most (its stages), never on values: within an epoch every step is the same work. A method
with stages says by `phase(epoch)` which one this is: equal values, equal work. A number that is another one in every epoch is a tensor,
which `begin(epoch)` fills before the first step. Parameters that a stage leaves out of its terms get no gradient at all (None), so the
optimiser leaves them alone.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from iekd import data, networks
from iekd.baselines.ab import AB
from iekd.baselines.cc import CC
from iekd.baselines.crd import CRD
from iekd.baselines.fitnet import FitNet
from iekd.baselines.kd import KD
from iekd.baselines.nst import NST
from iekd.baselines.pkt import PKT
from iekd.baselines.rkd import RKD
from iekd.baselines.sp import SP
from iekd.baselines.supervised import Supervised
from iekd.baselines.tf_kd import TfKD
from iekd.baselines.vid import VID
from iekd.config import RunConfig
from iekd.method import features
from iekd.method.attention_transfer import AT, IEAT
from iekd.method.factor import FactorAE, FactorAutoEncoder
from iekd.method.factor_transfer import FT, IEFT
from iekd.method.features import Batch, Pair, PairError
from iekd.method.mutual import DML, IEDML
from iekd.method.overhaul import IEOD, OD

__all__ = ["Batch", "PairError", "build", "compared", "needs"]

CLASSES: dict[str, type[nn.Module]] = {
    "supervised": Supervised,
    "factor-ae": FactorAE,
    "kd": KD,
    "ft": FT,
    "ie-ft": IEFT,
    "at": AT,
    "od": OD,
    "tf-kd": TfKD,
    "fitnet": FitNet,
    "ab": AB,
    "ie-at": IEAT,
    "ie-od": IEOD,
    "sp": SP,
    "cc": CC,
    "vid": VID,
    "rkd": RKD,
    "pkt": PKT,
    "nst": NST,
    "crd": CRD,
    "dml": DML,
    "ie-dml": IEDML,
}

# The features that a method compares in height and width. One that is not here compares none, and takes any two networks.
COMPARED: dict[str, Callable[[features.Shapes, features.Shapes], list[Pair]]] = {
    "ft": features.last,
    "ie-ft": features.last,
    "at": features.stages,
    "od": features.stages,
    "fitnet": features.middle,
    "ab": features.stages,
    "ie-at": features.stages,
    "ie-od": features.stages,
    "vid": features.stages,
    "nst": features.last,
    "ie-dml": features.last,
}


def compared(config: RunConfig) -> list[Pair]:
    """The stages that the run's method compares, known before anything is trained. Raises `PairError` if the networks do not fit."""
    if config.method not in COMPARED:
        return []
    image = data.image_shape(config)
    shapes = (networks.feature_shapes(name, image) for name in (config.student, config.teacher))
    return COMPARED[config.method](*shapes)


def needs(config: RunConfig) -> list[str]:
    """The teacher's features that the run's method reads, beside the logits."""
    stages = [pair.teacher for pair in compared(config)]
    match config.method:
        case "ft" | "ie-ft":
            return ["factor"]
        case "at" | "ie-at" | "fitnet" | "vid" | "nst":
            return stages
        case "od" | "ie-od" | "ab":
            return [f"{stage}_pre" for stage in stages]
        case "sp" | "factor-ae":
            every = networks.feature_shapes(config.teacher, data.image_shape(config))
            return [name for name in every if name.startswith("stage")][-1:]
        case "cc" | "rkd" | "pkt" | "crd":
            return ["pooled"]
    return []


def build(
    config: RunConfig,
    student: nn.Module | None,
    teacher: nn.Module | None,
    autoencoder: FactorAutoEncoder | None,
    labels: Tensor | None = None,
) -> nn.Module:
    """The method a configuration names, with fresh parts for these networks. Raises `PairError` if it cannot compare them.

    `labels`: the classes of all training images, for a method with a memory. In mutual learning `teacher` is the peer.
    """
    stages = compared(config)
    match config.method:
        case "supervised":
            return Supervised()
        case "factor-ae":
            return FactorAE(
                teacher.feature_channels, config.factor_ratio, config.decoder, config.reconstruction
            )
        case "kd":
            return KD(config.kd_alpha, config.kd_temperature)
        case "ft":
            return FT(
                student.feature_channels, autoencoder.encoder.factor_channels, config.ft_weight
            )
        case "ie-ft":
            return IEFT(
                student.feature_channels,
                autoencoder.encoder,
                inherit=config.inherit,
                explore=config.explore,
                inherit_weight=config.inherit_weight,
                explore_weight=config.explore_weight,
                split=config.split,
                ratio=config.split_ratio,
                seed=config.seed,
                explore_target=config.explore_target,
                explore_encoder=config.explore_encoder,
            )
        case "at":
            return AT(stages, config.at_weight)
        case "od":
            return OD(stages, teacher.norms, config.od_weight)
        case "tf-kd":
            return TfKD(config.tfkd_weight, config.tfkd_temperature)
        case "fitnet":
            return FitNet(stages[0], config.fitnet_weight, config.init_epochs, config.epochs)
        case "ab":
            return AB(stages, config.ab_weight, config.init_epochs)
        case "ie-at":
            return IEAT(
                stages,
                config.at_weight,
                config.explore_weight,
                split=config.split,
                ratio=config.split_ratio,
                seed=config.seed,
            )
        case "ie-od":
            return IEOD(
                stages,
                teacher.norms,
                config.od_weight,
                config.explore_weight,
                split=config.split,
                ratio=config.split_ratio,
                seed=config.seed,
            )
        case "sp":
            return SP(config.sp_weight)
        case "cc":
            return CC(config.cc_weight)
        case "vid":
            return VID(stages, config.vid_weight)
        case "rkd":
            return RKD(config.rkd_weight)
        case "pkt":
            return PKT(config.pkt_weight)
        case "nst":
            return NST(stages[0], config.nst_weight)
        case "crd":
            return CRD(
                student.head.in_features, teacher.head.in_features, labels, config.crd_weight
            )
        case "dml":
            return DML(config.dml_weight)
        case "ie-dml":
            return IEDML(
                student.feature_channels,
                teacher.feature_channels,
                ratio=config.factor_ratio,
                decoder=config.decoder,
                reconstruction=config.reconstruction,
                inherit_weight=config.inherit_weight,
                explore_weight=config.explore_weight,
                split=config.split,
                split_ratio=config.split_ratio,
                seed=config.seed,
                turns=config.turns,
            )
