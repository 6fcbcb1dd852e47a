"""The methods against independent float64 references, their shapes and parameter counts, and where
their gradients go.
"""

import numpy as np
import pytest
import torch
from scipy import special, stats
from tiny import tiny
from torch import nn

from iekd import networks
from iekd.baselines.kd import KD
from iekd.config import methods as methods_of
from iekd.method import measures
from iekd.method.factor import SLOPE, Encoder, FactorAE, FactorAutoEncoder
from iekd.method.factor_transfer import FT, IEFT
from iekd.method.features import Batch
from iekd.method.measures import soft_divergence
from iekd.method.split import channel_split
from iekd.networks import Output

B, C, K, H = 6, 8, 4, 3  # batch, student's channels, factor's channels, side
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
BATCH = Batch(LABELS, torch.arange(len(LABELS)))


def output(seed: int, channels: int = C, factor: int | None = None) -> Output:
    generator = torch.Generator().manual_seed(seed)
    features = {"stage3": torch.randn(B, channels, H, H, generator=generator).relu()}
    logits = 3 * torch.randn(B, 3, generator=generator)
    if factor:
        features["factor"] = torch.randn(B, factor, H, H, generator=generator)
    return Output(logits, features)


@pytest.fixture
def student():
    found = output(1)
    found.logits.requires_grad_(), found.feature.requires_grad_()
    return found


@pytest.fixture
def teacher():
    return output(2, channels=16, factor=K)


def encoder(seed: int = 0) -> Encoder:
    """A teacher's encoder as after training: its normalisations are not at their initial values."""
    torch.manual_seed(seed)
    found = Encoder(16, K)
    nn.init.normal_(found.last_norm.weight), nn.init.normal_(found.last_norm.bias)
    return found.requires_grad_(False)


def numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def cross_entropy(logits: torch.Tensor) -> float:
    return -special.log_softmax(numpy(logits), axis=1)[np.arange(B), LABELS].mean()


def unit(factor: np.ndarray) -> np.ndarray:
    flat = factor.reshape(len(factor), -1)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


def l1(x: np.ndarray, y: np.ndarray) -> float:
    return np.abs(unit(x) - unit(y)).mean()


# ---------------------------------------------------------------------- KD


@pytest.mark.parametrize(
    ("alpha", "temperature"), [(0.9, 4.0), (0.95, 20.0), (0.0, 1.0), (1.0, 0.5)]
)
def test_kd(student, teacher, alpha, temperature):
    terms = KD(alpha, temperature)(BATCH, student, teacher)
    p, q = (special.softmax(numpy(o.logits) / temperature, axis=1) for o in (teacher, student))
    divergence = stats.entropy(p, q, axis=1).mean()
    assert list(terms) == ["task", "kd"]
    assert terms["task"].item() == pytest.approx(
        (1 - alpha) * cross_entropy(student.logits), rel=1e-5, abs=1e-7
    )
    assert terms["kd"].item() == pytest.approx(
        alpha * temperature**2 * divergence, rel=1e-4, abs=1e-6
    )


def test_kd_is_zero_for_equal_logits_and_finite_for_huge_ones(teacher):
    assert soft_divergence(teacher.logits, teacher.logits, 4.0).item() == pytest.approx(0, abs=1e-6)
    huge = (1e4 * teacher.logits).requires_grad_()
    loss = soft_divergence(huge, teacher.logits, 1.0)
    loss.backward()
    assert loss.isfinite() and huge.grad.isfinite().all()


def test_the_gradient_of_kd_keeps_its_size_with_the_temperature(student, teacher):
    sizes = []
    for temperature in (20.0, 200.0):
        (gradient,) = torch.autograd.grad(
            soft_divergence(student.logits, teacher.logits, temperature), student.logits
        )
        sizes.append(gradient.norm().item())
    assert sizes[0] == pytest.approx(sizes[1], rel=0.1)


# ---------------------------------------------------------------------- FT


def test_ft(student, teacher):
    method = FT(C, K, weight=500.0)
    terms = method(BATCH, student, teacher)
    assert list(terms) == ["task", "ft"]
    factor = numpy(method.encoder(student.feature))
    assert factor.shape == (B, K, H, H)
    assert terms["task"].item() == pytest.approx(cross_entropy(student.logits), rel=1e-5)
    assert terms["ft"].item() == pytest.approx(
        500 * l1(factor, numpy(teacher.features["factor"])), rel=1e-4
    )


# ---------------------------------------------------------------------- IE: the split


@pytest.mark.parametrize("how", ["random", "halves"])
@pytest.mark.parametrize("ratio", [0, 0.25, 0.5, 0.75, 1])
@pytest.mark.parametrize("channels", [64, 16, 6])
def test_the_split_is_disjoint_and_covers_all_channels(how, ratio, channels):
    inherit, explore = channel_split(channels, ratio, how, seed=3)
    assert len(inherit) == round(ratio * channels)
    assert sorted([*inherit.tolist(), *explore.tolist()]) == list(range(channels))
    if how == "halves":
        assert inherit.tolist() == list(range(len(inherit)))


def test_the_random_split_is_a_function_of_the_seed():
    one, again, other = (channel_split(64, 0.5, "random", seed)[0].tolist() for seed in (1, 1, 2))
    assert one == again != other
    state = torch.get_rng_state()
    channel_split(64, 0.5, "random", 1)
    assert torch.equal(state, torch.get_rng_state())


# ---------------------------------------------------------------------- IE: the terms


@pytest.mark.parametrize("split", ["random", "halves"])
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_ie_terms_are_weight_times_measure_of_each_half(student, teacher, split, ratio):
    method = IEFT(
        C, encoder(), inherit_weight=50, explore_weight=7, split=split, ratio=ratio, seed=4
    )
    terms = method(BATCH, student, teacher)
    assert list(terms) == ["task", "inherit", "explore"]
    assert terms["task"].item() == pytest.approx(cross_entropy(student.logits), rel=1e-5)
    target = numpy(teacher.features["factor"])
    for name, channels, weight in zip(
        ("inherit", "explore"), channel_split(C, ratio, split, 4), (50, -7), strict=True
    ):
        factor = numpy(method.halves[name].encoder(student.feature[:, channels]))
        assert terms[name].item() == pytest.approx(weight * l1(factor, target), rel=1e-4)


@pytest.mark.parametrize("explore", ["l1", "l2", "cosine", "orthogonal", "cka"])
@pytest.mark.parametrize("inherit", ["l1", "l2", "cosine"])
def test_ie_uses_the_measures_it_names(student, teacher, inherit, explore):
    method = IEFT(
        C, encoder(), inherit=inherit, explore=explore, inherit_weight=3, explore_weight=2
    )
    terms, target = method(BATCH, student, teacher), teacher.features["factor"]
    halves = {
        name: half.encoder(student.feature[:, half.channels])
        for name, half in method.halves.items()
    }
    assert terms["inherit"].item() == pytest.approx(
        3 * measures.INHERIT[inherit](halves["inherit"], target).item(), rel=1e-5
    )
    assert terms["explore"].item() == pytest.approx(
        2 * measures.EXPLORE[explore](halves["explore"], target).item(), rel=1e-5
    )


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        (dict(inherit="none"), ["explore"]),
        (dict(explore="none"), ["inherit"]),
        (dict(inherit="none", explore="none"), []),
        (dict(ratio=0), ["explore"]),
        (dict(ratio=1), ["inherit"]),
    ],
)
def test_a_half_without_measure_or_channels_has_no_term_and_no_encoder(
    student, teacher, fields, names
):
    method = IEFT(C, encoder(), **fields)
    assert list(method(BATCH, student, teacher)) == ["task", *names]
    assert {name.split(".")[1] for name, _ in method.named_parameters()} == set(names)


@pytest.mark.parametrize("explore", sorted(measures.EXPLORE))
@pytest.mark.parametrize("inherit", sorted(measures.INHERIT))
def test_the_gradient_reaches_both_encoders_and_every_channel_but_not_the_teacher(
    student, teacher, inherit, explore
):
    teacher.features["factor"].requires_grad_()
    terms = IEFT(C, encoder(), inherit=inherit, explore=explore)
    result = terms(BATCH, student, teacher)
    for name, half in terms.halves.items():
        parameters = [
            p for n, p in half.encoder.named_parameters() if n.endswith("0.weight")
        ]  # the three convolutions
        *weights, feature = torch.autograd.grad(
            result[name], [*parameters, student.feature], retain_graph=True
        )
        assert len(weights) == 3 and all(w.isfinite().all() and w.norm() > 0 for w in weights)
        reached = feature.abs().sum((0, 2, 3)) > 0
        assert reached.nonzero().flatten().tolist() == half.channels.tolist()
    sum(result.values()).backward()
    assert teacher.features["factor"].grad is None


# -------------------------------------------------------------------- IE: partial L2 and its margin


def test_the_margin_is_the_expected_negative_factor_after_the_leaky_relu():
    trained = encoder()
    half = IEFT(C, trained, inherit="partial-l2").halves["inherit"]
    mean, sd = numpy(trained.last_norm.bias), np.abs(numpy(trained.last_norm.weight))
    expected = SLOPE * stats.truncnorm.mean(-np.inf, -mean / sd, loc=mean, scale=sd)
    assert np.allclose(numpy(half.margin), np.minimum(expected, 0), rtol=1e-4)
    assert "halves.inherit.margin" in IEFT(C, trained, inherit="partial-l2").state_dict()
    assert IEFT(C, trained).halves["inherit"].margin is None


@pytest.mark.parametrize(("side", "sign"), [("inherit", 1), ("explore", -1)])
def test_partial_l2_sees_the_teacher_through_the_margin(student, teacher, side, sign):
    method = IEFT(C, encoder(), **{side: "partial-l2", f"{side}_weight": 5})
    half = method.halves[side]
    x = unit(numpy(half.encoder(student.feature[:, half.channels])))
    y = unit(np.maximum(numpy(teacher.features["factor"]), numpy(half.margin)[None, :, None, None]))
    square = np.where((x <= y) & (y <= 0), 0, (x - y) ** 2)
    assert method(BATCH, student, teacher)[side].item() == pytest.approx(
        sign * 5 * np.sqrt(square.mean()), rel=1e-4
    )


# ---------------------------------------------------------------------- the factor auto-encoder


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("decoder", ["transposed", "conv"])
@pytest.mark.parametrize(
    ("channels", "ratio", "k"), [(64, 0.5, 32), (16, 0.25, 4), (16, 1, 16), (4, 0.1, 1)]
)
def test_autoencoder_shapes_and_parameter_counts(channels, ratio, k, decoder):
    network = FactorAutoEncoder(channels, ratio, decoder)
    c, feature = channels, torch.rand(2, channels, 5, 4)
    assert network.encoder.factor_channels == k
    assert (
        network.encoder(feature).shape == (2, k, 5, 4) and network(feature).shape == feature.shape
    )
    assert parameters(network.encoder) == 9 * (c * c + c * k + k * k) + 2 * (
        c + k + k
    )  # convolutions without bias, BN
    assert parameters(network.decoder) == 9 * (k * k + k * c + c * c) + 2 * (k + c + c)
    kinds = {type(m) for m in network.decoder.modules()}
    assert (nn.ConvTranspose2d in kinds) == (decoder == "transposed") != (nn.Conv2d in kinds)
    assert all(m.negative_slope == 0.1 for m in network.modules() if isinstance(m, nn.LeakyReLU))


def test_autoencoder_initial_weights():
    torch.manual_seed(0)
    network = FactorAutoEncoder(64, 0.5)
    first, second = network.encoder[0][0].weight, network.encoder[1][0].weight
    assert first.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
    assert second.std().item() == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.02)


@pytest.mark.parametrize(("reconstruction", "power"), [("l2", 2), ("l1", 1)])
def test_the_reconstruction_loss(teacher, reconstruction, power):
    method = FactorAE(16, 0.5, "transposed", reconstruction)
    (loss,) = method(BATCH, None, teacher).values()
    difference = numpy(method.autoencoder(teacher.feature)) - numpy(teacher.feature)
    assert loss.item() == pytest.approx((np.abs(difference) ** power).mean(), rel=1e-4)


# ---------------------------------------------------------------------- building


@pytest.mark.parametrize(
    ("method", "terms"),
    [
        ("supervised", ["task"]),
        ("kd", ["task", "kd"]),
        ("ft", ["task", "ft"]),
        ("ie-ft", ["task", "inherit", "explore"]),
        ("factor-ae", ["reconstruction"]),
        ("at", ["task", "at"]),
        ("od", ["task", "od"]),
        ("tf-kd", ["task", "kd"]),
        ("fitnet", ["hint"]),
        ("ab", ["ab"]),
        ("ie-at", ["task", "inherit", "explore"]),
        ("ie-od", ["task", "inherit", "explore"]),
    ],
)
def test_every_method_builds_and_gives_finite_terms(method, terms):
    config = tiny(method)
    small, large = (networks.build(name, 10, 1) for name in ("resnet8x0.25", "resnet8x0.5"))
    autoencoder = FactorAutoEncoder(large.feature_channels, 0.5)
    images, labels = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])
    with torch.no_grad():
        taught = large(images)
        if method in ("ft", "ie-ft"):
            taught.features["factor"] = autoencoder.encoder(taught.feature)
    built = methods_of.build(config, small, large, autoencoder)
    found = built(Batch(labels, labels), small(images), taught)
    assert list(found) == terms and all(
        term.isfinite() and term.dim() == 0 for term in found.values()
    )


def test_exploration_away_from_what_was_inherited(student, teacher):
    trained = encoder()
    method = IEFT(C, trained, explore_target="inherit")
    terms = method(BATCH, student, teacher)
    inherited, explored = (
        method.halves[name].factor(student.feature) for name in ("inherit", "explore")
    )
    assert terms["explore"].item() == pytest.approx(
        50 * measures.EXPLORE["l1"](explored, inherited).item(), rel=1e-5
    )
    terms["explore"].backward()
    assert all(
        p.grad is None for p in method.halves["inherit"].parameters()
    )  # F_inh is a target there: no gradient
    assert all(p.grad is not None for p in method.halves["explore"].parameters())


def test_a_frozen_exploration_encoder_gets_no_gradient_and_the_student_does(student, teacher):
    trained = encoder()
    method = IEFT(C, trained, explore_encoder="frozen")
    feature = student.feature.detach().requires_grad_()
    terms = method(
        BATCH, student._replace(features={**student.features, "stage3": feature}), teacher
    )
    terms["explore"].backward()
    assert all(p.grad is None for p in method.halves["explore"].parameters())
    assert feature.grad.abs().sum() > 0
