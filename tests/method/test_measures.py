"""Measures: each against a float64 NumPy reference of its formula, by finite differences, and where
it could break.
"""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from iekd.config.fields import choices
from iekd.method.measures import (
    EXPLORE,
    INHERIT,
    RESIDUE,
    centred_l1,
    cka,
    cosine,
    expected_negative,
    l1,
    l1_unit,
    l2,
    margin_relu,
    orthogonal,
    partial_l2,
    unit,
)

MEASURES = {f.__name__: f for f in (l1, l2, cosine, orthogonal, partial_l2, cka, centred_l1)}
LOSSES = {
    **{f"inherit-{k}": f for k, f in INHERIT.items()},
    **{f"explore-{k}": f for k, f in EXPLORE.items()},
}
every_measure = pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def factors(
    *shape: int, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Two factors that have something in common."""
    generator = torch.Generator().manual_seed(seed)
    a, b, shared = (
        torch.randn(*(shape or (6, 4, 3, 3)), generator=generator, dtype=torch.float64)
        for _ in range(3)
    )
    return (a + shared).to(dtype), (b + shared).to(dtype)


# -------------------------------------------------- references, one sample and one number at a time


def np_unit(x: np.ndarray) -> np.ndarray:
    return np.array([row.ravel() / math.sqrt(math.fsum(row.ravel() ** 2)) for row in x])


def np_cosines(x: np.ndarray, y: np.ndarray) -> list[float]:
    return [float(a @ b) for a, b in zip(np_unit(x), np_unit(y), strict=True)]


def np_partial(x: np.ndarray, y: np.ndarray) -> float:
    pairs = zip(np_unit(x).ravel(), np_unit(y).ravel(), strict=True)
    return math.sqrt(np.mean([0 if a <= b <= 0 else (a - b) ** 2 for a, b in pairs]))


def np_unbiased_hsic(k: np.ndarray, m: np.ndarray) -> float:
    """Song et al. 2012, equation 5: the U-statistic, written with traces and sums."""
    n, one = len(k), np.ones(len(k))
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    middle = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    return (np.trace(k @ m) + middle - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3))


def np_cka(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x.mean((2, 3)), y.mean((2, 3))
    k, m = x @ x.T, y @ y.T
    return np_unbiased_hsic(k, m) / math.sqrt(np_unbiased_hsic(k, k) * np_unbiased_hsic(m, m))


def np_biased_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Feature form of Kornblith et al. 2019: ||Y'X||^2 / (||X'X|| ||Y'Y||) of the centred features
    (B, N).
    """
    x, y = x - x.mean(0), y - y.mean(0)
    return np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


def np_centred(x: np.ndarray) -> np.ndarray:
    flat = x.reshape(len(x), -1)
    rows = zip(flat, flat - flat.mean(0), strict=True)
    return np.array(
        [c / math.sqrt(math.fsum(c**2) + RESIDUE**2 * math.fsum(row**2)) for row, c in rows]
    )


REFERENCES = {
    "l1": lambda x, y: np.mean(np.abs(np_unit(x) - np_unit(y))),
    "l2": lambda x, y: math.sqrt(np.mean((np_unit(x) - np_unit(y)) ** 2)),
    "cosine": lambda x, y: np.mean([1 - c for c in np_cosines(x, y)]),
    "orthogonal": lambda x, y: np.mean([abs(c) for c in np_cosines(x, y)]),
    "partial_l2": np_partial,
    "cka": np_cka,
    "centred_l1": lambda x, y: np.mean(np.abs(np_centred(x) - np_centred(y))),
}


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (4, 2, 1, 1), (32, 32, 8, 8)])
def test_value_is_the_formula(name: str, seed: int, shape: tuple[int, ...]) -> None:
    x, y = factors(*shape, seed=seed)
    expected = REFERENCES[name](x.numpy(), y.numpy())
    assert MEASURES[name](x, y).item() == pytest.approx(expected, rel=1e-10, abs=1e-12)
    assert MEASURES[name](x.float(), y.float()).item() == pytest.approx(
        expected, rel=1e-4, abs=1e-5
    )


@every_measure
def test_gradient_is_the_finite_difference(measure) -> None:
    x, y = factors(5, 3, 2, 2)
    assert torch.autograd.gradcheck(measure, (x.requires_grad_(), y.requires_grad_()))


@every_loss
def test_loss_gradient_is_the_finite_difference(loss) -> None:
    x, y = factors(5, 3, 2, 2)
    assert torch.autograd.gradcheck(lambda student: loss(student, y), (x.requires_grad_(),))


# ---------------------------------------------------------------------- properties


@pytest.mark.parametrize(
    "name, at_equality", list(zip(MEASURES, (0, 0, 0, 1, 0, 1, 0), strict=True))
)
def test_equality(name: str, at_equality: float) -> None:
    x, _ = factors()
    assert MEASURES[name](x, x.clone()).item() == pytest.approx(at_equality, abs=1e-12)


@every_measure
def test_scale_does_not_matter(measure) -> None:
    x, y = factors()
    torch.testing.assert_close(measure(1e3 * x, 1e-3 * y), measure(x, y))


@pytest.mark.parametrize("name", MEASURES)
def test_bounds(name: str) -> None:
    n = 4 * 3 * 3
    low, high = {"cosine": (0, 2), "orthogonal": (0, 1), "cka": (-1, 1)}.get(
        name, (0, 2 / math.sqrt(n))
    )
    x, y = factors()
    for student, teacher in [(x, y), (x, -x), (x, x), (-x, y), (x.abs(), -y.abs())]:
        assert low - 1e-12 <= MEASURES[name](student, teacher).item() <= high + 1e-12


def test_squared_l2_is_twice_the_cosine_loss() -> None:
    x, y = factors()
    torch.testing.assert_close(l2(x, y) ** 2 * x[0].numel(), 2 * cosine(x, y))


def test_unit_has_length_one() -> None:
    x, _ = factors()
    torch.testing.assert_close(unit(x).norm(dim=1), torch.ones(6, dtype=x.dtype))


def test_partial_l2_forgives_only_below_a_negative_teacher() -> None:
    teacher = torch.tensor([[-0.6, 0.8]])[..., None, None]
    forgiven = torch.tensor([[-1.0, 1e-9]])[
        ..., None, None
    ]  # first value below the teacher's, second far from it
    assert partial_l2(forgiven, teacher).item() == pytest.approx(0.8 / math.sqrt(2))
    assert partial_l2(teacher, forgiven).item() == pytest.approx(math.sqrt((0.4**2 + 0.8**2) / 2))


def test_cka_tells_independent_from_equal_where_biased_cka_does_not() -> None:
    x, y = (
        torch.randn(128, 2048, 1, 1, generator=torch.Generator().manual_seed(k)) for k in (1, 2)
    )
    assert np_biased_cka(x.flatten(1).numpy(), y.flatten(1).numpy()) == pytest.approx(
        0.94, abs=0.02
    )
    assert abs(cka(x, y).item()) < 0.05
    assert cka(x, x).item() == pytest.approx(1)


def test_cka_is_unbiased_around_zero() -> None:
    values = torch.stack([cka(*(torch.randn(16, 8, 2, 2) for _ in range(2))) for _ in range(400)])
    assert values.min() < 0 and abs(values.mean()) < 4 * values.std() / math.sqrt(400)


def test_cka_does_not_see_rotation_shift_and_scale() -> None:
    x, y = factors(16, 5, 2, 2)
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=x.dtype)).Q
    moved = 7 * torch.einsum("dc,bchw->bdhw", rotation, x) + torch.randn(5, 1, 1, dtype=x.dtype)
    torch.testing.assert_close(cka(moved, y), cka(x, y))


def test_cka_compares_factors_of_different_shape() -> None:
    x, y = factors(8, 4, 3, 3)
    assert cka(x, y[:, :2, :1]).isfinite()


# ---------------------------------------------------------------------- where it could break

B, ZERO = 6, torch.zeros(6, 4, 3, 3)
NORMAL = factors(dtype=torch.float32)
ONE_DEAD = NORMAL[0] * (torch.arange(B) != 2)[:, None, None, None]
DEGENERATE = {
    "equal": (NORMAL[0], NORMAL[0].clone()),
    "opposite": (NORMAL[0], -NORMAL[0]),
    "multiple": (NORMAL[0], 3 * NORMAL[0]),
    "student zero": (ZERO, NORMAL[1]),
    "teacher zero": (NORMAL[0], ZERO),
    "both zero": (ZERO, ZERO.clone()),
    "one sample zero": (ONE_DEAD, NORMAL[1]),
    "constant": (ZERO + 0.1, ZERO - 7.3),
    "constant over the batch": (NORMAL[0][:1].expand(B, -1, -1, -1).clone(), NORMAL[1]),
    "huge": (1e20 * NORMAL[0], 1e20 * NORMAL[1]),
    "largest float": (3e38 * NORMAL[0].sign(), NORMAL[1]),
    "huge offset": (NORMAL[0] + 1e20, NORMAL[1]),
    "tiny": (1e-20 * NORMAL[0], NORMAL[1]),
    "subnormal": (1e-42 * NORMAL[0], 1e-42 * NORMAL[1]),
    "one outlier": (
        NORMAL[0] * torch.tensor([1e20, 1, 1, 1, 1, 1])[:, None, None, None],
        NORMAL[1],
    ),
    "batch of 1": (NORMAL[0][:1], NORMAL[1][:1]),
    "batch of 3": (NORMAL[0][:3], NORMAL[1][:3]),
    "batch of 4": (NORMAL[0][:4], NORMAL[1][:4]),
}


@every_loss
@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_input_gives_finite_value_and_gradient(loss, case: str) -> None:
    student, teacher = (x.clone().requires_grad_() for x in DEGENERATE[case])
    value = loss(student, teacher)
    value.backward()
    assert value.shape == () and value.isfinite()
    assert student.grad is not None and student.grad.isfinite().all()
    assert teacher.grad is None  # the teacher is fixed


@every_measure
def test_huge_input_gives_the_right_value(measure) -> None:
    torch.testing.assert_close(measure(1e20 * NORMAL[0], 1e20 * NORMAL[1]), measure(*NORMAL))


def test_unit_of_zero_is_zero_with_gradient_zero() -> None:
    x = ONE_DEAD.clone().requires_grad_()
    (unit(x) * torch.randn(B, 36)).sum().backward()
    assert (unit(x)[2] == 0).all() and (x.grad[2] == 0).all() and (x.grad[1] != 0).any()


@pytest.mark.parametrize(
    "case", ["constant", "constant over the batch", "both zero", "batch of 3", "student zero"]
)
def test_cka_of_degenerate_input_is_zero_with_gradient_zero(case: str) -> None:
    student, teacher = (x.clone().requires_grad_() for x in DEGENERATE[case])
    value = cka(student, teacher)
    value.backward()
    assert value == 0 and (student.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16])
@every_measure
def test_half_input_is_computed_in_float32(measure, dtype: torch.dtype) -> None:
    x, y = factors(dtype=dtype)
    assert measure(x, y).dtype == torch.float32
    assert torch.equal(measure(x, y), measure(x.float(), y.float()))


@every_loss
def test_autocast_changes_nothing(loss) -> None:
    expected = loss(*NORMAL)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(*NORMAL), expected)


@every_loss
def test_nothing_waits_for_the_device(loss) -> None:
    """Fake tensors have no values to wait for: reading one raises."""
    with FakeTensorMode():
        student = torch.empty(8, 4, 3, 3, requires_grad=True)
        loss(student, torch.empty(8, 4, 3, 3)).backward()


def test_memory_format_does_not_matter() -> None:
    x, y = NORMAL
    for measure in MEASURES.values():
        torch.testing.assert_close(
            measure(x.contiguous(memory_format=torch.channels_last), y), measure(x, y)
        )


@pytest.mark.parametrize("name", [n for n in MEASURES if n != "cka"])
def test_factors_of_different_shape_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        MEASURES[name](ZERO, ZERO[:, :1])


def test_cka_refuses_batches_of_different_size() -> None:
    with pytest.raises(ValueError, match="batches differ"):
        cka(ZERO, ZERO[:1])


# ---------------------------------------------------------------------- losses


def test_losses_are_those_the_configuration_names() -> None:
    assert ["none", *INHERIT] == list(choices("inherit"))
    assert ["none", *EXPLORE] == list(choices("explore"))


def test_losses_are_the_measures_with_sign_and_unit() -> None:
    x, y = factors()
    scale = 2 / math.sqrt(math.pi * 36)
    expected = {
        "inherit-l1": l1(x, y),
        "inherit-l2": l2(x, y),
        "inherit-partial-l2": partial_l2(x, y),
    }
    expected |= {name.replace("inherit", "explore"): -value for name, value in expected.items()}
    expected |= {"inherit-cosine": scale * cosine(x, y), "explore-cosine": -scale * cosine(x, y)}
    expected |= {"explore-orthogonal": scale * orthogonal(x, y), "explore-cka": scale * cka(x, y)}
    expected |= {"explore-centred-l1": -centred_l1(x, y)}
    assert expected.keys() == LOSSES.keys()
    for name, value in expected.items():
        torch.testing.assert_close(LOSSES[name](x, y), value)


def test_one_weight_means_one_order_of_magnitude() -> None:
    """Between independent factors, every loss of the inheritance side is within a factor 1.5 of the
    L1 unit.
    """
    x, y = (torch.randn(64, 32, 8, 8, generator=torch.Generator().manual_seed(k)) for k in (1, 2))
    assert (
        l1(x, y).item()
        == pytest.approx(l1_unit(x), rel=0.01)
        == pytest.approx(1.13 / math.sqrt(2048), rel=0.01)
    )
    for loss in INHERIT.values():
        assert 1 / 1.5 < loss(x, y).item() / l1_unit(x) < 1.5


@pytest.mark.parametrize("name", LOSSES)
def test_minimising_moves_the_right_way(name: str) -> None:
    """A small step down the gradient: inheritance comes nearer to the teacher's factor, exploration
    goes away.
    """
    x, y = factors(16, 4, 2, 2)
    x.requires_grad_()
    LOSSES[name](x, y).backward()
    moved = x.detach() - 1e-2 * x.grad / x.grad.norm()
    judge = cka if name == "explore-cka" else (lambda a, b: 1 - cosine(a, b))
    change = judge(moved, y) - judge(x.detach(), y)
    assert change > 0 if name.startswith("inherit") else change < 0


# -------------------------------------------------------- an exploration that no constant satisfies


def test_the_best_constant_satisfies_l1_and_not_the_centred_form() -> None:
    """-sign(y^)/sqrt(N) of the mean image is nearly the largest L1 distance; centred, it is a
    factor of zeros.
    """
    teacher = torch.nn.functional.leaky_relu(
        torch.randn(64, 8, 4, 4) + torch.randn(1, 8, 4, 4), 0.1
    )
    constant = -teacher.mean(0, keepdim=True).sign().expand_as(teacher)
    opposite = -teacher
    assert l1(constant, teacher) > l1(opposite, teacher)
    deviation = teacher - teacher.mean(0)
    assert (
        centred_l1(constant, teacher)
        < centred_l1(torch.randn_like(teacher), teacher)
        < centred_l1(-deviation, teacher)
    )


@pytest.mark.parametrize("noise", [0, 1e-8, 1e-4, 1e-2])
def test_a_constant_with_noise_counts_as_a_constant(noise: float) -> None:
    """Noise is not blown up to full length, and the gradient keeps its bound."""
    teacher, constant = torch.randn(32, 8, 4, 4), torch.randn(1, 8, 4, 4).expand(32, -1, -1, -1)
    student = (constant + noise * torch.randn(32, 8, 4, 4)).requires_grad_()
    value = centred_l1(student, teacher)
    zeros = centred_l1(torch.ones_like(teacher), teacher)
    assert value.item() == pytest.approx(zeros.item(), rel=0.02)
    value.backward()
    lengths = student.detach().flatten(1).norm(dim=1)
    bound = 2 / (RESIDUE * lengths.min()) / math.sqrt(student[0].numel() * len(student))
    assert student.grad.norm() <= bound


def test_the_centred_form_pushes_a_constant_where_l1_does_not() -> None:
    """From the best constant with a little noise: the share of the energy that differs between
    images grows.
    """
    torch.manual_seed(1)
    teacher = torch.randn(64, 8, 2, 2)
    start = torch.ones_like(teacher) + 0.05 * torch.randn_like(teacher)

    def share_after(measure) -> float:
        x = start.clone().requires_grad_()
        for _ in range(200):
            (gradient,) = torch.autograd.grad(-measure(x, teacher), x)
            x = (x - 0.5 * len(x) * gradient).detach().requires_grad_()
        return (1 - unit(x.detach()).mean(0).square().sum()).item()

    assert share_after(centred_l1) > 5 * (1 - unit(start).mean(0).square().sum().item())


def test_a_batch_of_one_has_no_deviation() -> None:
    x, y = (z[:1].requires_grad_() for z in factors())
    value = centred_l1(x, y)
    value.backward()
    assert value == 0 and (x.grad == 0).all()


# ---------------------------------------------------------------------- margin ReLU


def test_margin_relu_is_a_maximum_per_channel() -> None:
    x, margin = NORMAL[0], torch.tensor([-0.5, 0.0, -0.1, -9.0])
    expected = np.stack([np.maximum(x[:, c].numpy(), margin[c].item()) for c in range(4)], axis=1)
    np.testing.assert_array_equal(margin_relu(x, margin).numpy(), expected)


def batch_norm(beta: list[float], gamma: list[float]) -> nn.BatchNorm2d:
    bn = nn.BatchNorm2d(len(beta))
    bn.load_state_dict(
        {**bn.state_dict(), "bias": torch.tensor(beta), "weight": torch.tensor(gamma)}
    )
    return bn


@pytest.mark.parametrize(
    "beta, gamma", [(0.0, 1.0), (0.3, 0.7), (-0.4, 0.2), (1.0, -0.5), (-3.0, 1.0), (2.0, 1.0)]
)
def test_expected_negative_is_the_integral(beta: float, gamma: float) -> None:
    normal = stats.norm(beta, abs(gamma))
    mass = integrate.quad(normal.pdf, -30, 0, points=[beta])[0] if beta < 0 else normal.cdf(0)
    first = integrate.quad(lambda z: z * normal.pdf(z), min(beta, 0) - 12 * abs(gamma), 0)[0]
    assert expected_negative(batch_norm([beta], [gamma])).item() == pytest.approx(
        first / mass, rel=1e-5
    )


def test_expected_negative_in_the_tails() -> None:
    beta, gamma = [5.0, 50.0, 1e4, -50.0, 0.0, -2.0, 3.0], [0.1, 1.0, 1e-3, 1.0, 0.0, 0.0, 0.0]
    values = expected_negative(batch_norm(beta, gamma))
    assert values.isfinite().all() and (values <= 0).all() and not values.requires_grad
    # far above zero: -gamma^2/beta; far below: beta; without spread: beta or nothing
    np.testing.assert_allclose(values, [-0.002, -0.02, 0, -50, 0, -2, 0], rtol=1e-3, atol=1e-8)
