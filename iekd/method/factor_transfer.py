"""FT and IE-FT: the student matches the teacher's factor; with IE, one half inherits it and the
other explores away from it.

FT (Kim, Park, Kwak 2018): the student's whole feature goes through one encoder, the translator.
IE-FT: L = L_task + lambda_inh * L_inh(F_inh, F_T) + lambda_exp * L_exp(F_exp, F_T), each half
through its own encoder; L_exp is the negative of a distance, or a similarity.

    teacher, frozen   f_T (B, C_T, H, W) -> encoder, frozen  -> F_T   (B, K, H, W)
    student's last    f_S (B, C, H, W) -> C/2 channels -> encoder, trained -> F_inh (B, K, H, W)
    feature                            -> the others   -> encoder, trained -> F_exp (B, K, H, W)

K = round(factor_ratio * C_T). The teacher and the encoder of F_T are trained beforehand, in runs of
their own; the student and its encoders are trained together, and the encoders are discarded.
`@method` tells the rest of the library what it needs: what teaches it, its fields, which features
it compares and reads (`registry.method` explains each argument). `Batch` and `Part` are in
`features`.
"""

from typing import Literal

from torch import Tensor, nn

from iekd.errors import ConfigError
from iekd.method import features, measures
from iekd.method.factor import SLOPE, Encoder
from iekd.method.features import Batch, Part, rolled
from iekd.method.registry import EXPLORE, INHERIT, method
from iekd.method.split import SPLIT, channel_split
from iekd.networks import Output


@method(
    "ft",
    taught="factor",
    fields=("ft_weight",),
    compares=features.last,
    reads="factor",
    source="the student's whole feature, translated by an encoder of its own, matches the "
    "teacher's factor (Kim, Park, Kwak 2018).",
    detects=True,
    build=lambda run, networks: FT(
        networks.student.feature_channels,
        networks.autoencoder.encoder.factor_channels,
        run.ft_weight,
    ),
)
class FT(nn.Module):
    """task = CE, ft = weight * L1(F_S, F_T), the mean over batch and dimensions of normalised
    factors; weight 500 as in the authors' code.

    The translator is trained jointly with the student. Mean over N = C*H*W values: at N = 2048 and
    weight 500 the term starts near 10.
    """

    def __init__(self, channels: int, factor_channels: int, weight: float):
        super().__init__()
        self.encoder, self.weight = Encoder(channels, factor_channels), weight

    def parts(self, student: Output, teacher: Output) -> dict[str, Part]:
        """The student's factor with the teacher's, both (B, K, H, W)."""
        return {
            "ft": Part(self.encoder(student.feature), teacher.features["factor"], self._distance)
        }

    def forward(self, batch: Batch, student: Output, teacher: Output) -> dict[str, Tensor]:
        terms = {name: part.value for name, part in self.parts(student, teacher).items()}
        return {"task": batch.goal(student), **terms}

    def _distance(self, factor: Tensor, target: Tensor) -> Tensor:
        return self.weight * measures.l1(factor, target)


class Half(nn.Module):
    """One half of the student: its channels, its encoder, its measure and weight."""

    def __init__(
        self, channels: Tensor, teacher_encoder: Encoder, measure: str, table: dict, weight: float
    ):
        super().__init__()
        self.register_buffer("channels", channels)
        self.encoder = Encoder(len(channels), teacher_encoder.factor_channels)
        self.measure, self.weight = table[measure], weight
        # Partial L2 sees the teacher through a margin ReLU (overhaul distillation); the factor's
        # LeakyReLU scales the margin too.
        margin = (
            SLOPE * measures.expected_negative(teacher_encoder.last_norm)
            if measure == "partial-l2"
            else None
        )
        self.register_buffer("margin", margin)

    def factor(self, feature: Tensor) -> Tensor:
        """This half's factor (B, K, H, W) of the student's feature (B, C, H, W)."""
        return self.encoder(feature.index_select(1, self.channels))

    def forward(self, factor: Tensor, target: Tensor) -> Tensor:
        """Weighted loss of this half's factor against its target, both (B, K, H, W)."""
        target = target if self.margin is None else measures.margin_relu(target, self.margin)
        return self.weight * self.measure(factor, target)


@method(
    "ie-ft",
    taught="factor",
    compares=features.last,
    reads="factor",
    fields=("inherit", "explore", "inherit_weight", *SPLIT, "explore_target", "explore_encoder"),
    source="one half of the student's channels inherits the teacher's factor, the other half is "
    "pushed away from it to explore.",
    detects=True,
    build=lambda run, networks: IEFT(
        networks.student.feature_channels,
        networks.autoencoder.encoder,
        inherit=run.inherit,
        explore=run.explore,
        inherit_weight=run.inherit_weight,
        explore_weight=run.explore_weight,
        split=run.split,
        ratio=run.split_ratio,
        seed=run.seed,
        explore_target=run.explore_target,
        explore_encoder=run.explore_encoder,
    ),
)
class IEFT(nn.Module):
    """task = CE, inherit = lambda_inh * L_inh, explore = lambda_exp * L_exp.

    task is the task loss, `batch.goal`. Weights 50 and 50 (reported second-hand) with
    mean-reduced measures: at N = 2048 inherit starts near +1, explore near -1. A half without a
    measure ('none') or without channels has no term and no encoder. Both targets are the teacher's
    factor F_T (diagram and code); explore_target 'inherit' pushes F_exp away from F_inh instead,
    with no gradient through F_inh (after a blog's text); 'shuffled' pushes it away from the
    teacher's factor of the preceding image in the batch, so that the push carries no information
    about this image (our control). A 'frozen' exploration encoder stays at its random weights, so
    that only the student's feature can move away (our control).
    """

    def __init__(
        self,
        channels: int,
        teacher_encoder: Encoder,
        *,
        inherit: str = "l1",
        explore: str = "l1",
        inherit_weight: float = 50.0,
        explore_weight: float = 50.0,
        split: Literal["random", "halves"] = "random",
        ratio: float = 0.5,
        seed: int = 0,
        explore_target: Literal["teacher", "inherit", "shuffled"] = "teacher",
        explore_encoder: Literal["trained", "frozen"] = "trained",
    ):
        super().__init__()
        self.explore_target = explore_target
        inheriting, exploring = channel_split(channels, ratio, split, seed)
        self.halves = nn.ModuleDict()
        if inherit != "none" and len(inheriting):
            self.halves["inherit"] = Half(
                inheriting, teacher_encoder, inherit, INHERIT, inherit_weight
            )
        if explore != "none" and len(exploring):
            self.halves["explore"] = Half(
                exploring, teacher_encoder, explore, EXPLORE, explore_weight
            )
            self.halves["explore"].encoder.requires_grad_(explore_encoder == "trained")
        if explore_target == "inherit" and set(self.halves) == {"explore"}:
            raise ConfigError(
                f"split_ratio: {ratio:g} of {channels} channels is none, so there is no inherited "
                "factor to explore away from"
            )

    def parts(self, student: Output, teacher: Output) -> dict[str, Part]:
        """What each half compares: its factor with its target, both (B, K, H, W)."""
        factors = {name: half.factor(student.feature) for name, half in self.halves.items()}
        targets = dict.fromkeys(factors, teacher.features["factor"])
        if self.explore_target == "inherit":
            targets["explore"] = factors["inherit"].detach()
        if self.explore_target == "shuffled":
            targets["explore"] = rolled(targets["explore"])
        return {
            name: Part(factors[name], targets[name], half, half.channels)
            for name, half in self.halves.items()
        }

    def forward(self, batch: Batch, student: Output, teacher: Output) -> dict[str, Tensor]:
        terms = {name: part.value for name, part in self.parts(student, teacher).items()}
        return {"task": batch.goal(student), **terms}
