"""Two losses that are controls of exploration, registered as a reader's own are."""

from torch import Tensor

import iekd
from iekd.method import measures


@iekd.measure("mirrored-l1", label="mirrored L1", sides=("explore",), whole_batch=True)
def mirrored_l1(student: Tensor, teacher: Tensor) -> Tensor:
    """Centred L1 to the teacher's factor with its sign turned, (B, C, H, W) each.

    Exploration goes away from that, so *towards* what the teacher says about the image. Size, bound
    and gradient are those of centred L1, and what satisfies it best is +sign(y^)/sqrt(N) where that
    of centred L1 is -sign(y^)/sqrt(N). (`iekd.check_measure` calls it a similarity, and is right.)
    """
    return measures.centred_l1(student, -teacher)


@iekd.measure("mean-l1", label="L1 to the mean", sides=("explore",), whole_batch=True)
def mean_l1(student: Tensor, teacher: Tensor) -> Tensor:
    """L1 to the mean over the batch of the teacher's normalised factors, (B, C, H, W) each.

    The target is the same for every image: a push away from it says nothing about any of them.
    """
    common = iekd.unit(teacher).mean(0, keepdim=True)
    return measures.l1(student.flatten(1), common.expand(len(student), -1))
