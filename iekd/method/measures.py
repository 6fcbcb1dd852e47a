"""Similarity measures of IE-KD between a student's and the teacher's factor, and the losses made of
them.

A measure takes two factors of shape (B, C, H, W) and returns a scalar. Most work on the flattened,
L2-normalised factors x^ = x / ||x||_2 of N = C*H*W values. All compute in float32 or wider whatever
autocast says, give a finite value and gradient for zero, constant, equal and huge input, and never
wait for the device.

No value grows with the batch; each docstring says what its mean is over. `l1`, `l2`, `cosine` and
`orthogonal` (mean |cos|) are formulas of the authors' code; `partial_l2` is only named in
descriptions of the paper, so its form here is our choice; `cka` is linear CKA as in their code, but
debiased. Most are distances: inheritance minimises a distance, exploration its negative. A
similarity (`orthogonal`, `cka`) is only for exploration, which minimises it.

**Losses.** Training minimises `INHERIT[name](student, teacher)` and `EXPLORE[name](student,
teacher)`. One weight should mean a comparable push for every measure, but the mean L1 between
independent, centred unit factors is sqrt(2/N) * sqrt(2/pi) = 1.13/sqrt(N), 0.025 for N = 2048,
while cosine, orthogonal and CKA do not shrink with N. Our choice: the losses multiply those three
by 1.13/sqrt(N) ("L1 units"); L2 and partial L2 are root means, already of that order.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iekd.method.registry import EXPLORE, INHERIT, Measure, l1_unit, measure

__all__ = [
    "EXPLORE",
    "INHERIT",
    "Measure",
    "cka",
    "cosine",
    "l1",
    "l1_unit",
    "l2",
    "orthogonal",
    "partial_l2",
]

# Added by `centred_l1` to a deviation's length, as a fraction of the factor's own: our choice.
RESIDUE = 0.1

# A sample whose largest value is below this counts as zero: its gradient, of order 1/||x||, could
# overflow.
DEAD = 1e-12


# ---------------------------------------------------------------------- normalisation


def unit(x: Tensor) -> Tensor:
    """x^ = x / ||x||_2 per sample, (B, ...) -> (B, N). A zero sample stays zero, gradient zero."""
    x = divide_by_largest(_wide(x).flatten(1), dim=1)
    squares = x.square().sum(1, keepdim=True)
    dead = squares == 0
    # The inner `where` keeps the infinite slope of rsqrt at 0 out of the gradient, the outer one
    # makes the gradient 0.
    return x * torch.where(dead, 0, torch.where(dead, 1, squares).rsqrt())


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.half, torch.bfloat16) else x


def divide_by_largest(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Scale the largest absolute value to 1, so that squares cannot overflow; all zero where the
    largest value is below `DEAD`.

    The divisor is detached. The gradient is still exact if what is computed next does not depend on
    scale.
    """
    largest = x.detach().abs().amax(dim, keepdim=True)
    dead = largest < DEAD
    return torch.where(dead, 0, x / torch.where(dead, 1, largest))


def _units(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    if student.shape != teacher.shape:
        raise ValueError(
            f"factors differ in shape: student {tuple(student.shape)}, teacher "
            f"{tuple(teacher.shape)}"
        )
    return unit(student), unit(teacher)


def _root(mean_square: Tensor) -> Tensor:
    """Square root with gradient 0 at 0."""
    positive = mean_square > 0
    return torch.where(positive, torch.where(positive, mean_square, 1).sqrt(), 0)


# ---------------------------------------------------------------------- measures


@measure("l1", label="L1")
def l1(student: Tensor, teacher: Tensor) -> Tensor:
    """mean |x^ - y^| over batch and dimensions; 0 .. 2/sqrt(N)."""
    x, y = _units(student, teacher)
    return (x - y).abs().mean()


@measure("l2", label="L2", whole_batch=True)
def l2(student: Tensor, teacher: Tensor) -> Tensor:
    """sqrt(mean (x^ - y^)^2) over batch and dimensions; 0 .. 2/sqrt(N). Gradient 0 at x^ = y^
    (the authors' code gives NaN there).
    """
    x, y = _units(student, teacher)
    return _root((x - y).square().mean())


@measure("cosine", unit="one")
def cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """batch mean of 1 - cos(x, y); 0 .. 2; half of ||x^ - y^||^2. A zero factor has cosine 0."""
    return 1 - _cosines(student, teacher).mean()


def _cosines(student: Tensor, teacher: Tensor) -> Tensor:
    x, y = _units(student, teacher)
    return (x * y).sum(1)


@measure("partial-l2", label="partial L2", whole_batch=True)
def partial_l2(student: Tensor, teacher: Tensor) -> Tensor:
    """`l2` whose differences count as 0 where x^ <= y^ <= 0; 0 .. 2/sqrt(N).

    Overhaul Distillation (Heo et al. 2019) sums the squares of features that are not normalised.
    Normalised factors and the root are our choice: the negative, which exploration minimises, is
    then bounded, and the scale is that of `l2`.
    """
    x, y = _units(student, teacher)
    forgiven = (x <= y) & (y <= 0)
    return _root(torch.where(forgiven, 0, (x - y).square()).mean())


@measure("orthogonal", unit="one", similarity=True)
def orthogonal(student: Tensor, teacher: Tensor) -> Tensor:
    """mean over the batch of |cos(x, y)|; 0 .. 1, smallest for orthogonal factors."""
    return _cosines(student, teacher).abs().mean()


@measure("cka", label="CKA", unit="one", similarity=True, whole_batch=True)
def cka(student: Tensor, teacher: Tensor) -> Tensor:
    """Debiased linear CKA of the spatially average-pooled factors (B, C); 1 for equal, about 0 for
    independent factors.

    Gram form: the cosine between the two U-centred B x B Gram matrices, whose inner product is
    B(B-3) times the unbiased HSIC (Song et al. 2012). It can be slightly negative, and never leaves
    -1 .. 1. Pooled and debiased, because biased CKA of *independent* factors is about 0.94 at B =
    128, N = 2048: minimising that is mostly minimising an artefact. Needs B >= 4; smaller batches
    and constant factors give 0 with gradient 0. C, H and W of the two may differ.
    """
    if len(student) != len(teacher):
        raise ValueError(f"batches differ: student {len(student)}, teacher {len(teacher)}")
    if len(student) < 4:
        return (_wide(student) * 0).sum()
    x, y = (unit(_centred_gram(factor)[None]) for factor in (student, teacher))
    return (x * y).sum()


def _centred_gram(factor: Tensor) -> Tensor:
    """U-centred Gram matrix (B, B) of the pooled factor, diagonal 0, up to a positive number."""
    n = len(factor)
    x = divide_by_largest(_wide(factor).reshape(n, factor.shape[1], -1), dim=(0, 1, 2)).mean(2)
    x = x - x.mean(0)  # U-centring makes this redundant, except for rounding
    with torch.autocast(x.device.type, enabled=False):
        gram = x @ x.T
    others = 1 - torch.eye(n, dtype=x.dtype, device=x.device)
    gram = gram * others
    rows = gram.sum(1) / (n - 2)
    return (gram - rows[:, None] - rows[None, :] + rows.sum() / (n - 1)) * others


@measure("centred-l1", label="centred L1", sides=("explore",), whole_batch=True)
def centred_l1(student: Tensor, teacher: Tensor) -> Tensor:
    """mean |x^ - y^| over batch and dimensions, of factors centred over the batch; 0 .. 2/sqrt(N).
    Our choice.

    A single constant factor, the same for every image, nearly satisfies exploration by `l1`. Here
    such a factor counts as zero, because x^ = c / sqrt(||c||^2 + RESIDUE^2 ||x||^2) with
    c = x - mean over the batch: what all images share is subtracted first. The second term bounds
    the gradient by 2 / (RESIDUE ||x||) and keeps noise on a constant from being blown up to full
    length. This distance is largest at -sign(y^)/sqrt(N), nearly the *opposite* deviation, so the
    push must depend on the image. A batch of one image has no deviation: value and gradient are 0.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"factors differ in shape: student {tuple(student.shape)}, teacher "
            f"{tuple(teacher.shape)}"
        )
    return (_centred_unit(student) - _centred_unit(teacher)).abs().mean()


def _centred_unit(x: Tensor) -> Tensor:
    """Deviation from the batch's mean, (B, ...) -> (B, N), of length below 1; see `centred_l1`."""
    x = divide_by_largest(_wide(x).flatten(1), dim=(0, 1))
    deviation = x - x.mean(0)
    squares = deviation.square().sum(1, keepdim=True) + RESIDUE**2 * x.square().sum(1, keepdim=True)
    dead = squares == 0
    return deviation * torch.where(dead, 0, torch.where(dead, 1, squares).rsqrt())


# ------------------------------------------------------------- margin ReLU of Overhaul Distillation


def margin_relu(teacher: Tensor, margin: Tensor) -> Tensor:
    """max(teacher, margin) per channel, (B, C, H, W) and (C,): the teacher's side of Overhaul
    Distillation's partial L2.
    """
    return torch.maximum(teacher, margin.to(teacher.dtype)[:, None, None])


@torch.no_grad()
def expected_negative(bn: nn.BatchNorm2d) -> Tensor:
    """E[z | z < 0] for z ~ N(beta, gamma^2), the output of the layer per channel: (C,), not
    positive, without gradient.

    beta - |gamma| phi(a) / Phi(-a) with a = beta/|gamma|, by the scaled erfc so that no tail
    underflows. (The code of Overhaul Distillation takes -3 |gamma| instead where Phi(-a) < 0.001.)
    """
    mean, sd = bn.bias.double(), bn.weight.double().abs().clamp(min=1e-9)
    ratio = math.sqrt(2 / math.pi) / torch.special.erfcx(mean / sd / math.sqrt(2))
    return (mean - sd * ratio).clamp(max=0).to(bn.bias.dtype)


# ---------------------------------------------------------------------- logits


def soft_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)) of logits (B, classes), batch mean; T^2
    keeps the gradient's size.
    """
    log_student, log_teacher = (
        F.log_softmax(student / temperature, 1),
        F.log_softmax(teacher / temperature, 1),
    )
    return (
        F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2
    )
