"""AT and IE-AT: the student looks where the teacher looks; with IE, part of each stage looks
elsewhere to explore.

AT: Zagoruyko and Komodakis, "Paying more attention to attention", ICLR 2017, eq. 2. The paper only
names IE-AT. Our choice: AT on the inheriting half, its dissimilarity on the exploring half, at
every stage.
"""

from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor, nn

from iekd.method import features, measures
from iekd.method.features import Batch, Pair, Part
from iekd.method.registry import l1_unit, method
from iekd.method.split import SPLIT, split_stages
from iekd.networks import Output


def attention(feature: Tensor) -> Tensor:
    """Q = sum over the channels of |A_c|^2, (B, C, H, W) -> (B, H, W), up to a positive factor per
    sample, so that no square overflows.
    """
    return measures.divide_by_largest(feature, dim=(1, 2, 3)).square().sum(1)


def attention_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """mean over batch and positions of (Q_S / ||Q_S||_2 - Q_T / ||Q_T||_2)^2, for features of any
    number of channels; 0 .. 2 / (H W).
    """
    return map_distance(attention(student), attention(teacher))


def map_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """The same for two attention maps (B, H, W)."""
    return (measures.unit(student) - measures.unit(teacher)).square().mean()


@method(
    "at",
    taught="teacher",
    fields=("at_weight",),
    compares=features.stages,
    reads="stages",
    source="the student looks where the teacher looks (Zagoruyko and Komodakis, "
    '"Paying more attention to attention", ICLR 2017, eq. 2).',
    detects=True,
    build=lambda run, networks: AT(networks.pairs, run.at_weight),
)
class AT(nn.Module):
    """task = CE, at = weight * sum over the stages of `attention_distance`, each a mean over batch
    and positions; weight 1000.

    The paper sets beta to 10^3 divided by the number of elements of the map and of the batch, which
    is this mean. Its eq. 2 has beta / 2 and a norm that is not squared, whose gradient has no limit
    at equality; the authors' code (beta 1e3 for the paper's CIFAR-10 table) squares it and drops
    the half, and so do we. That code uses the bare sums of its pre-activation networks; we use what
    follows the ReLU.
    """

    def __init__(self, pairs: Sequence[Pair], weight: float):
        super().__init__()
        self.pairs, self.weight = pairs, weight

    def forward(self, batch: Batch, student: Output, teacher: Output) -> dict[str, Tensor]:
        distance = sum(
            attention_distance(student.features[p.student], teacher.features[p.teacher])
            for p in self.pairs
        )
        return {"task": batch.goal(student), "at": self.weight * distance}


class Half(nn.Module):
    """Some channels of a student stage against the teacher's whole stage."""

    def __init__(self, pair: Pair, channels: Tensor, measure: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.pair, self.measure = pair, measure
        self.register_buffer("channels", channels)

    def forward(self, student: Output, teacher: Output) -> Tensor:
        feature = student.features[self.pair.student].index_select(1, self.channels)
        return self.measure(feature, teacher.features[self.pair.teacher])


def attention_contrast(student: Tensor, teacher: Tensor) -> Tensor:
    """cos(Q_S, Q_T) - 1 in L1 units of the student's (B, C, H, W): -1.13 / sqrt(C H W) .. 0, lowest
    where the maps look at different places.

    1 - cos is half of ||q_S - q_T||^2, which AT makes small; for non-negative maps it is at most 1.
    """
    return -l1_unit(student) * measures.cosine(attention(student), attention(teacher))


@method(
    "ie-at",
    taught="teacher",
    fields=("at_weight", *SPLIT),
    compares=features.stages,
    reads="stages",
    source="part of each stage's channels inherits the teacher's attention map, the rest looks "
    "elsewhere to explore.",
    detects=True,
    build=lambda run, networks: IEAT(
        networks.pairs,
        run.at_weight,
        run.explore_weight,
        split=run.split,
        ratio=run.split_ratio,
        seed=run.seed,
    ),
)
class IEAT(nn.Module):
    """task = CE, inherit = weight * sum over the stages of `attention_distance` (a mean of squares,
    weight 1000: that of AT), explore = explore_weight * sum over the stages of `attention_contrast`
    (mean over the batch, weight 50: that of IE-FT).

    AT's distance is bounded, so its negative is safe; but at AT's weight it could reach -31 on an
    8 x 8 map and drown out the labels. In L1 units (see `iekd.method.measures`) it stays above
    -1.3 there (32 channels). Neither half has an encoder: maps have no channels to translate. With
    ratio 1 this is AT.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        weight: float,
        explore_weight: float,
        *,
        split: Literal["random", "halves"] = "random",
        ratio: float = 0.5,
        seed: int = 0,
    ):
        super().__init__()
        self.weight, self.explore_weight = weight, explore_weight
        inheriting, exploring = split_stages(pairs, ratio, split, seed)
        self.inherit = nn.ModuleList(
            Half(pair, channels, attention_distance) for pair, channels in inheriting
        )
        self.explore = nn.ModuleList(
            Half(pair, channels, attention_contrast) for pair, channels in exploring
        )

    def forward(self, batch: Batch, student: Output, teacher: Output) -> dict[str, Tensor]:
        terms = {"task": batch.goal(student)}
        if self.inherit:
            terms["inherit"] = self.weight * sum(half(student, teacher) for half in self.inherit)
        if self.explore:
            terms["explore"] = self.explore_weight * sum(
                half(student, teacher) for half in self.explore
            )
        return terms

    def parts(self, student: Output, teacher: Output) -> dict[str, Part]:
        """What each half compares at the last stage: attention maps (B, H, W)."""
        found = {}
        for name, halves in (("inherit", self.inherit), ("explore", self.explore)):
            if halves:
                half, weight = halves[-1], self.weight if name == "inherit" else self.explore_weight
                feature = student.features[half.pair.student].index_select(1, half.channels)
                target = teacher.features[half.pair.teacher]
                loss = _of_maps(half, feature, weight)
                found[name] = Part(
                    attention(feature), attention(target), loss, half.channels, half.pair.student
                )
        return found


def _of_maps(half: Half, feature: Tensor, weight: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The weighted term of a half as a function of the two attention maps."""
    if half.measure is attention_distance:
        return lambda ours, theirs: weight * map_distance(ours, theirs)
    return lambda ours, theirs: -weight * l1_unit(feature) * measures.cosine(ours, theirs)
