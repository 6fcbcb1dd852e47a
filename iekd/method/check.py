"""The checks that every measure must pass, as a function for authors of new ones."""

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from iekd.method.registry import MEASURES, Measure, MeasureRow

SHAPE = (8, 4, 3, 3)  # images, channels, height, width
LARGER = (8, 16, 6, 6)  # 16 times the values: in L1 units a measure falls to a quarter
LEAST_STEP = 1e-6


class MeasureError(AssertionError):
    """A measure that would spoil a training run; the message says with which input."""


def check_measure(measure: Measure) -> None:
    """Try a measure of two factors (B, C, H, W) as training would use it.

    It must return a scalar; value and gradient must be finite for zero, constant, equal and huge
    factors; its gradient must match its value (finite differences in float64); and it must not read
    a value from the device, as `.item()` or `if tensor:` do, because every step would wait for it.

    A registered measure must also match its decorator: a distance or a similarity, its unit, and
    bounded if exploration may use it.

    Raises:
        MeasureError: one of these fails; the message says which, and for which input.

    >>> from iekd import unit
    >>> check_measure(lambda student, teacher: (unit(student) - unit(teacher)).abs().mean())
    """
    student, teacher = _drawn(SHAPE)
    zero, constant = torch.zeros(SHAPE), torch.ones(SHAPE)
    inputs = {
        "ordinary factors": (student, teacher),
        "a student of zeros": (zero, teacher),
        "a teacher of zeros": (student, zero),
        "a constant student": (constant, teacher),
        "equal factors": (teacher, teacher),
        "huge factors": (student * 1e20, teacher * 1e20),
    }
    for what, (ours, theirs) in inputs.items():
        _check_finite(measure, what, ours, theirs)
    _check_gradient(measure, student.double(), teacher.double())
    _check_waits(measure)
    for row in MEASURES.values():
        if row.function is measure:
            _check_row(row)


def check_ordinary(measure: Measure) -> None:
    """Raise `MeasureError` for a measure that cannot train anything: no number, no gradient."""
    _check_finite(measure, "ordinary factors", *_drawn(SHAPE))


def _drawn(shape: tuple[int, ...]) -> list[Tensor]:
    """Independent factors of a student and a teacher."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for _ in range(2)]


@torch.no_grad()
def _check_row(row: MeasureRow) -> None:
    """Check that a measure is what its decorator says."""
    measure, (student, teacher) = row.function, _drawn(SHAPE)
    equal, other = measure(teacher, teacher).item(), measure(student, teacher).item()
    if (equal > other) != row.similarity:
        kind = ("similarity", "False") if row.similarity else ("distance", "True")
        raise MeasureError(
            f"it is registered as a {kind[0]}, but is {equal:.4g} for equal factors and "
            f"{other:.4g} for unrelated ones; register it with similarity={kind[1]}"
        )
    if "explore" in row.sides:
        far = measure(1000 * student, teacher).item()
        if abs(far) > 10 * max(abs(equal), abs(other)):
            raise MeasureError(
                f"it is {other:.4g}, and {far:.4g} for a student's factor 1000 times as large: "
                "exploration by it has no end; normalise the factors first (iekd.unit), or "
                "register it with sides=('inherit',)"
            )

    small, large = (_largest(measure, *_drawn(shape)) for shape in (SHAPE, LARGER))
    unit = "one" if large > 0.7 * small else "l1" if large < 0.4 * small else row.unit
    if unit != row.unit:
        raise MeasureError(
            f"it is registered with unit={row.unit!r}, but its largest value is {small:.4g} for "
            f"{student[0].numel()} numbers and {large:.4g} for 16 times as many; register it with "
            f"unit={unit!r}"
        )


def _largest(measure: Measure, student: Tensor, teacher: Tensor) -> float:
    """The largest absolute value for equal, opposite and unrelated factors."""
    values = [measure(other, teacher) for other in (teacher, -teacher, student)]
    return torch.stack(values).abs().max().item()


def _check_finite(measure: Measure, what: str, student: Tensor, teacher: Tensor) -> None:
    student = student.clone().requires_grad_()
    value = measure(student, teacher)
    if not isinstance(value, Tensor) or value.dim() > 0:
        raise MeasureError(
            f"it returns {_described(value)}; a measure returns one number, a scalar tensor"
        )
    if not value.isfinite():
        hint = "; normalise them first (iekd.unit)" if "huge" in what else ""
        raise MeasureError(f"its value is {value.item()} for {what}{hint}")
    if not value.requires_grad:
        raise MeasureError(
            f"its value does not depend on the student, for {what}: nothing could be learned from "
            "it"
        )
    (gradient,) = torch.autograd.grad(value, student)
    if not gradient.isfinite().all():
        raise MeasureError(
            f"its gradient is not finite for {what}; look for sqrt, division or norm at 0"
        )


def _check_gradient(measure: Measure, student: Tensor, teacher: Tensor) -> None:
    """Compare the gradient along one random direction with the difference of the values."""
    student.requires_grad_()
    direction = torch.randn(SHAPE, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad(measure(student, teacher), student)
    slope = (gradient * direction).sum().item()
    with torch.no_grad():
        ahead, behind = (measure(student + s * LEAST_STEP * direction, teacher) for s in (1, -1))
    difference = ((ahead - behind) / (2 * LEAST_STEP)).item()
    if abs(slope - difference) > 1e-4 * max(1e-3, abs(slope), abs(difference)):
        raise MeasureError(
            f"its gradient is {slope:.6g} where its value rises by {difference:.6g}; look for "
            "detach()"
        )


def _check_waits(measure: Measure) -> None:
    """Fake tensors have no values: reading one raises."""
    with FakeTensorMode():
        student = torch.empty(SHAPE, requires_grad=True)
        try:
            measure(student, torch.empty(SHAPE)).backward()
        except Exception as error:
            raise MeasureError(
                f"it reads a value while it computes, and every step would wait for it ({error})"
            ) from None


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"
