"""What a method sees: the batch, the pairs of stages it compares, and the parts of its loss.

The shapes alone determine which features of student and teacher a method compares, before anything
is trained.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from iekd.networks import Output
from iekd.networks.common import he_init


class Batch(NamedTuple):
    """`labels` (B,), for a detector (B, M, 5), see `detection.ssd_loss`; `index` (B,): the position
    of each image in the training split (contrastive methods index their memory by it).

    `epoch` counts from 0; methods with stages derive the stage from it. With the same seed, all of
    these are the same for every method.
    """

    labels: Tensor
    index: Tensor
    epoch: int = 0

    def goal(self, student: Output) -> Tensor:
        """The loss of the task itself: cross-entropy, batch mean; for a detector, `ssd_loss`."""
        if self.labels.dim() == 1:
            return F.cross_entropy(student.logits, self.labels)
        from iekd.method.detection import ssd_loss

        return ssd_loss(student, self.labels)


Shapes = dict[str, tuple[int, ...]]  # of the features of a network, see networks.feature_shapes


class PairError(ValueError):
    """Two networks whose features a method cannot compare."""


class Pair(NamedTuple):
    """A stage of the student and one of the teacher with equal height and width: the names in
    `Output.features`, and the channels.
    """

    student: str
    teacher: str
    student_channels: int
    teacher_channels: int


def last(student: Shapes, teacher: Shapes) -> list[Pair]:
    """The last stage of both. Raises `PairError` if their height and width differ."""
    ours, theirs = _last(student), _last(teacher)
    if student[ours][1:] != teacher[theirs][1:]:
        raise PairError(
            "the last features must have equal height and width, but the student gives "
            f"{student[ours][1:]} and the teacher gives {teacher[theirs][1:]}"
        )
    return [Pair(ours, theirs, student[ours][0], teacher[theirs][0])]


def _last(shapes: Shapes) -> str:
    """The name of the last stage."""
    return [name for name in shapes if name.startswith("stage")][-1]


def stages(student: Shapes, teacher: Shapes) -> list[Pair]:
    """The last stage of every height and width that both have, in order: all three for two ResNets,
    the first three for VGG-13 with a WRN. The papers only compare networks with equal
    down-sampling. Raises `PairError` if they share no size.
    """
    ours, theirs = _ends(student), _ends(teacher)
    shared = [size for size in ours if size in theirs]
    if not shared:
        raise PairError(
            f"no stage of both has the same height and width: the student has {[*ours]}, the "
            f"teacher has {[*theirs]}"
        )
    return [
        Pair(ours[size], theirs[size], student[ours[size]][0], teacher[theirs[size]][0])
        for size in shared
    ]


def middle(student: Shapes, teacher: Shapes) -> list[Pair]:
    """The middle one of `stages` (the first if there are two): FitNet's guided layer and hint."""
    shared = stages(student, teacher)
    return [shared[(len(shared) - 1) // 2]]


def _ends(shapes: Shapes) -> dict[tuple[int, ...], str]:
    """The last stage of each height and width."""
    return {
        shape[1:]: name
        for name, shape in shapes.items()
        if name.startswith("stage") and not name.endswith("_pre")
    }


def connector(inputs: int, outputs: int) -> nn.Sequential:
    """1x1 convolution and BN, from the student's channels to the teacher's."""
    layers = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
    he_init(layers)
    return layers


def halved_backwards(stages: Sequence[Tensor]) -> Tensor:
    """Sum of 2^(k - n) times stage k = 1 .. n: the last counts once, the one before it half."""
    return sum(value / 2 ** (len(stages) - k) for k, value in enumerate(stages, 1))


class Part(NamedTuple):
    """One loss term at the last stage. `loss(student, target)` is the weighted term, with its sign.

    `student` and `target` hold a factor, a feature or an attention map for each image, (B, ...).
    The term sees these `channels` (None = all) of the student's feature `stage` ('' = the last).
    """

    student: Tensor
    target: Tensor
    loss: Callable[[Tensor, Tensor], Tensor]
    channels: Tensor | None = None
    stage: str = ""

    @property
    def value(self) -> Tensor:
        return self.loss(self.student, self.target)

    def raw(self, output: Output) -> Tensor:
        """The student's feature that the term sees, (B, C, H, W)."""
        feature = output.features[self.stage] if self.stage else output.feature
        return feature if self.channels is None else feature.index_select(1, self.channels)


def rolled(factor: Tensor) -> Tensor:
    """Another image's factor: each gets that of the preceding image, the first that of the last."""
    return factor.roll(1, 0)
