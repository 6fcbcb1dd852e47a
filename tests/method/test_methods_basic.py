"""AT, OD, FitNet, AB, Tf-KD, IE-AT and IE-OD against float64 references written from their papers,
and what must hold of them.
"""

import math

import numpy as np
import pytest
import torch
from scipy import special, stats
from tiny import tiny
from torch import nn

from iekd import data, networks
from iekd.baselines import ab, fitnet, tf_kd
from iekd.config import RunConfig
from iekd.config import methods as methods_of
from iekd.errors import TrainingError
from iekd.method import attention_transfer, factor_transfer, features, measures, overhaul
from iekd.method.features import Batch, Pair, PairError
from iekd.networks import Output
from iekd.training import loop, runner
from iekd.training.run import Run, build_network, build_run

B = 6
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
BATCH = Batch(LABELS, torch.arange(B))
PAIRS = [
    Pair("stage1", "stage2", 4, 6),
    Pair("stage2", "stage3", 8, 8),
]  # the second with equal widths
SIDES = (5, 3)
ALL = ["at", "od", "tf-kd", "fitnet", "ab", "ie-at", "ie-od"]
STAGED = ["fitnet", "ab"]


def outputs(role: str, seed: int) -> Output:
    """Outputs of a made-up network with the stages that PAIRS names."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for pair, side in zip(PAIRS, SIDES, strict=True):
        before = torch.randn(B, getattr(pair, f"{role}_channels"), side, side, generator=generator)
        name = getattr(pair, role)
        found |= {f"{name}_pre": before, name: before.relu()}
    return Output(3 * torch.randn(B, 3, generator=generator), found)


@pytest.fixture
def student():
    found = outputs("student", 1)
    for tensor in (found.logits, *found.features.values()):
        tensor.requires_grad_()
    return found


@pytest.fixture
def teacher():
    return outputs("teacher", 2)


@pytest.fixture
def norms():
    """The teacher's normalisations, as after training."""
    torch.manual_seed(3)
    found = {pair.teacher: nn.BatchNorm2d(pair.teacher_channels) for pair in PAIRS}
    for norm in found.values():
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    return found


def numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def cross_entropy(logits: torch.Tensor) -> float:
    return -special.log_softmax(numpy(logits), axis=1)[np.arange(B), LABELS].mean()


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x)


def both(student: Output, teacher: Output, suffix: str = "") -> list[tuple[np.ndarray, np.ndarray]]:
    return [
        (numpy(student.features[p.student + suffix]), numpy(teacher.features[p.teacher + suffix]))
        for p in PAIRS
    ]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


# ---------------------------------------------------------------------- AT


def attention_map(feature: np.ndarray) -> np.ndarray:
    """Q / ||Q||_2 of one sample, flattened; Q = sum over channels of |A|^2."""
    return unit((np.abs(feature) ** 2).sum(0).flatten())


def attention_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    squares = [
        np.linalg.norm(attention_map(a) - attention_map(b)) ** 2
        for a, b in zip(ours, theirs, strict=True)
    ]
    return sum(squares) / (
        B * ours.shape[2] * ours.shape[3]
    )  # beta is 10^3 / (elements of the map * batch size)


def test_the_goal_is_the_cross_entropy_bit_for_bit(student):
    logits = [student.logits.detach().clone().requires_grad_() for _ in range(2)]
    goal = BATCH.goal(Output(logits[0], {}))
    written = nn.functional.cross_entropy(logits[1], LABELS)
    goal.backward(), written.backward()
    assert torch.equal(goal, written) and torch.equal(logits[0].grad, logits[1].grad)


def test_at(student, teacher):
    terms = attention_transfer.AT(PAIRS, 1000)(BATCH, student, teacher)
    assert list(terms) == ["task", "at"]
    assert terms["task"].item() == pytest.approx(cross_entropy(student.logits), rel=1e-5)
    expected = sum(attention_error(ours, theirs) for ours, theirs in both(student, teacher))
    assert terms["at"].item() == pytest.approx(1000 * expected, rel=1e-4)


def test_the_attention_distance_knows_neither_scale_nor_channels_nor_signs():
    x, y = random(B, 8, 3, 3), random(B, 5, 3, 3, seed=1)
    distance = attention_transfer.attention_distance(x, y).item()
    assert 0 < distance <= 2 / 9
    for other in (1e-3 * x, 1e15 * x, -x, x.flip(1), torch.cat([x, x], 1)):
        assert attention_transfer.attention_distance(other, y).item() == pytest.approx(distance)
    assert attention_transfer.attention_distance(x, 7 * x.flip(1)).item() == pytest.approx(
        0, abs=1e-12
    )
    assert attention_transfer.attention_distance(y, x).item() == pytest.approx(distance)
    apart = torch.zeros(2, B, 4, 3, 3)
    apart[0, :, :, 0, 0] = apart[1, :, :, 2, 2] = 1
    assert attention_transfer.attention_distance(*apart).item() == pytest.approx(2 / 9)


# ---------------------------------------------------------------------- OD


def margins(norm: nn.BatchNorm2d) -> np.ndarray:
    """E[z | z < 0] of the normalisation's output."""
    mean, sd = numpy(norm.bias), np.abs(numpy(norm.weight))
    return stats.truncnorm.mean(-np.inf, -mean / sd, loc=mean, scale=sd)


def partial(ours: np.ndarray, theirs: np.ndarray, margin: np.ndarray) -> np.ndarray:
    """Element by element: nothing where student <= teacher <= 0, the teacher behind its margin
    ReLU.
    """
    total = np.zeros(ours.shape)
    for place, x in np.ndenumerate(ours):
        y = max(theirs[place], margin[place[1]])
        total[place] = 0 if x <= y <= 0 else (x - y) ** 2
    return total


def test_od(student, teacher, norms):
    torch.manual_seed(0)
    method = overhaul.OD(PAIRS, norms, 1e-3)
    terms = method(BATCH, student, teacher)
    assert list(terms) == ["task", "od"]
    expected = 0
    for stage, pair, halving in zip(method.stages, PAIRS, (2, 1), strict=True):
        ours = numpy(stage.connector(student.features[f"{pair.student}_pre"]))
        theirs = numpy(teacher.features[f"{pair.teacher}_pre"])
        expected += partial(ours, theirs, margins(norms[pair.teacher])).sum() / B / halving
    assert terms["od"].item() == pytest.approx(1e-3 * expected, rel=1e-4)


def test_partial_squares_forgive_what_the_relu_takes_away():
    teacher = random(B, 4, 3, 3)
    assert overhaul.partial_squares(teacher, teacher) == 0
    below = torch.where(teacher <= 0, teacher - 5, teacher)
    assert overhaul.partial_squares(below, teacher) == 0
    above = torch.where(teacher <= 0, teacher + 0.1, teacher)
    assert overhaul.partial_squares(above, teacher) > 0
    assert (
        overhaul.partial_squares(3 * below, 3 * teacher)
        == 0
        < overhaul.partial_squares(3 * above, 3 * teacher)
    )  # 9 times: not scale invariant
    assert (
        overhaul.partial_squares(3 * above, 3 * teacher) / overhaul.partial_squares(above, teacher)
    ).item() == pytest.approx(9)


def test_later_stages_count_more():
    one, two, four = (torch.tensor(float(v)) for v in (1, 2, 4))
    assert (
        features.halved_backwards([four, two, one]).item() == 3
        and features.halved_backwards([four]).item() == 4
    )


# ---------------------------------------------------------------------- AB


def boundary(ours: np.ndarray, theirs: np.ndarray, mu: float = 1.0) -> float:
    """|| rho(T) sigma(mu - S) + (1 - rho(T)) sigma(mu + S) ||^2, rho = 1 where active, sigma =
    max(0, .).
    """
    active = (theirs > 0).astype(float)
    return np.sum(
        (active * np.maximum(0, mu - ours) + (1 - active) * np.maximum(0, mu + ours)) ** 2
    )


def test_ab(student, teacher):
    torch.manual_seed(0)
    method = ab.AB(PAIRS, 3e-3, init_epochs=2)
    assert [type(c) for c in method.connectors] == [nn.Sequential, nn.Identity]
    expected = 0
    for connect, pair, halving in zip(method.connectors, PAIRS, (2, 1), strict=True):
        ours = numpy(connect(student.features[f"{pair.student}_pre"]))
        expected += boundary(ours, numpy(teacher.features[f"{pair.teacher}_pre"])) / B / halving
    for epoch in (0, 1):
        terms = method(BATCH._replace(epoch=epoch), student, teacher)
        assert list(terms) == ["ab"] and terms["ab"].item() == pytest.approx(
            3e-3 * expected, rel=1e-4
        )
    terms = method(BATCH._replace(epoch=2), student, teacher)
    assert list(terms) == ["task"] and terms["task"].item() == pytest.approx(
        cross_entropy(student.logits), rel=1e-5
    )


def test_boundary_squares_are_zero_beyond_the_margin_on_the_right_side_only():
    teacher = random(B, 4, 3, 3)
    right = torch.where(teacher > 0, 1.0, -1.0).double()
    for far in (1, 2, 1e6):
        assert ab.boundary_squares(far * right, teacher) == 0
    assert ab.boundary_squares(0.5 * right, teacher).item() == pytest.approx(0.25 * 4 * 9)
    assert ab.boundary_squares(-right, teacher).item() == pytest.approx(4 * 4 * 9)
    student = random(B, 4, 3, 3, seed=1)
    assert ab.boundary_squares(student, 100 * teacher) == ab.boundary_squares(
        student, teacher
    )  # only the sign of the teacher counts


# ---------------------------------------------------------------------- FitNet


def test_fitnet(student, teacher):
    torch.manual_seed(0)
    method = fitnet.FitNet(PAIRS[0], 100, init_epochs=2, epochs=7)
    guided = numpy(method.regressor(student.features["stage1"]))
    assert guided.min() == 0 and guided.shape == teacher.features["stage2"].shape
    terms = method(BATCH._replace(epoch=1), student, teacher)
    assert list(terms) == ["hint"]
    assert terms["hint"].item() == pytest.approx(
        100 * ((guided - numpy(teacher.features["stage2"])) ** 2).mean(), rel=1e-4
    )
    p, q = (special.softmax(numpy(o.logits) / 3, axis=1) for o in (teacher, student))
    for epoch, weight in ((2, 4), (4, 2.5), (6, 1)):
        method.begin(epoch)
        terms = method(BATCH._replace(epoch=epoch), student, teacher)
        assert list(terms) == ["task", "kd"]
        assert terms["task"].item() == pytest.approx(cross_entropy(student.logits), rel=1e-5)
        assert terms["kd"].item() == pytest.approx(
            weight * stats.entropy(p, q, axis=1).mean(), rel=1e-4
        )
    assert fitnet.FitNet(PAIRS[0], 100, init_epochs=2, epochs=3).soft_weight(2) == 4


# ---------------------------------------------------------------------- Tf-KD


@pytest.mark.parametrize(
    ("weight", "temperature"), [(0.1, 20.0), (0.95, 40.0), (0.0, 1.0), (1.0, 1.0)]
)
def test_tf_kd(student, weight, temperature):
    terms = tf_kd.TfKD(weight, temperature)(BATCH, student, None)
    written = np.full((B, 3), 0.01 / 2)
    written[np.arange(B), LABELS] = 0.99
    p = written ** (1 / temperature)
    p /= p.sum(1, keepdims=True)
    divergence = stats.entropy(
        p, special.softmax(numpy(student.logits) / temperature, axis=1), axis=1
    ).mean()
    assert terms["task"].item() == pytest.approx(
        (1 - weight) * cross_entropy(student.logits), rel=1e-5, abs=1e-7
    )
    assert terms["kd"].item() == pytest.approx(
        weight * temperature**2 * divergence, rel=2e-4, abs=1e-6
    )


def test_the_virtual_teacher_is_a_distribution_and_its_own_best_student():
    logits = tf_kd.virtual_teacher(LABELS, 10)
    assert torch.allclose(logits.exp().sum(1), torch.ones(B)) and torch.equal(
        logits.argmax(1), LABELS
    )
    terms = tf_kd.TfKD(1.0, 20.0)(
        BATCH, Output(logits + 5, {}), None
    )  # a shift of all logits changes no probability
    assert terms["kd"].item() == pytest.approx(0, abs=1e-4)


# ---------------------------------------------------------------------- IE-AT, IE-OD


@pytest.mark.parametrize("split", ["random", "halves"])
@pytest.mark.parametrize("ratio", [0.25, 0.5])
def test_ie_at(student, teacher, split, ratio):
    terms = attention_transfer.IEAT(PAIRS, 1000, 50, split=split, ratio=ratio, seed=4)(
        BATCH, student, teacher
    )
    assert list(terms) == ["task", "inherit", "explore"]
    pull = push = 0
    for stage, (ours, theirs) in enumerate(both(student, teacher)):
        inherit, explore = (
            half.tolist()
            for half in factor_transfer.channel_split(ours.shape[1], ratio, split, 4, stage)
        )
        pull += attention_error(ours[:, inherit], theirs)
        half = ours[:, explore]
        cosines = [attention_map(a) @ attention_map(b) for a, b in zip(half, theirs, strict=True)]
        push += (np.mean(cosines) - 1) * 2 / math.sqrt(math.pi * half[0].size)
    assert terms["inherit"].item() == pytest.approx(1000 * pull, rel=1e-4)
    assert terms["explore"].item() == pytest.approx(50 * push, rel=1e-4) and push < 0


def test_attention_contrast_is_bounded_and_knows_no_scale():
    x, y = random(B, 8, 3, 3), random(B, 5, 3, 3, seed=1)
    lowest = -measures.l1_unit(x)
    apart = torch.zeros(2, B, 8, 3, 3)
    apart[0, :, :, 0, 0] = apart[1, :, :, 2, 2] = 1
    assert attention_transfer.attention_contrast(*apart).item() == pytest.approx(lowest)
    assert attention_transfer.attention_contrast(x, x).item() == pytest.approx(0, abs=1e-12)
    assert lowest < attention_transfer.attention_contrast(x, y).item() < 0
    assert attention_transfer.attention_contrast(1e9 * x, 1e-9 * y).item() == pytest.approx(
        attention_transfer.attention_contrast(x, y).item()
    )


@pytest.mark.parametrize("split", ["random", "halves"])
@pytest.mark.parametrize("ratio", [0.25, 0.5])
def test_ie_od(student, teacher, norms, split, ratio):
    torch.manual_seed(0)
    method = overhaul.IEOD(PAIRS, norms, 1e-3, 50, split=split, ratio=ratio, seed=4)
    terms = method(BATCH, student, teacher)
    assert list(terms) == ["task", "inherit", "explore"]
    pull = push = 0
    for stage, (ours, theirs) in enumerate(both(student, teacher, "_pre")):
        margin, halving = margins(norms[PAIRS[stage].teacher]), (2, 1)[stage]
        inherit, explore = (
            half.tolist()
            for half in factor_transfer.channel_split(ours.shape[1], ratio, split, 4, stage)
        )
        near = numpy(method.inherit[stage].connector(torch.from_numpy(ours[:, inherit]).float()))
        pull += partial(near, theirs, margin).sum() / B / halving
        far = numpy(method.explore[stage].connector(torch.from_numpy(ours[:, explore]).float()))
        seen = np.maximum(theirs, margin[:, None, None])
        x, y = (np.stack([unit(sample) for sample in side]) for side in (far, seen))
        push -= np.sqrt(np.where((x <= y) & (y <= 0), 0, (x - y) ** 2).mean()) / halving
    assert terms["inherit"].item() == pytest.approx(1e-3 * pull, rel=1e-4)
    assert terms["explore"].item() == pytest.approx(50 * push, rel=1e-4)


def test_exploration_of_ie_od_is_bounded_however_far_its_connectors_grow(student, teacher, norms):
    method = overhaul.IEOD(PAIRS, norms, 1e-3, 1.0)
    for half in method.explore:
        nn.init.constant_(half.connector[1].weight, -1e12)
    lowest = -sum(
        2 / math.sqrt(p.teacher_channels * side**2) / halving
        for p, side, halving in zip(PAIRS, SIDES, (2, 1), strict=True)
    )
    assert lowest <= method(BATCH, student, teacher)["explore"].item() < 0


def test_all_channels_inheriting_is_the_base_method(student, teacher, norms):
    full = attention_transfer.IEAT(PAIRS, 1000, 50, ratio=1)(BATCH, student, teacher)
    assert list(full) == ["task", "inherit"]
    assert full["inherit"].item() == pytest.approx(
        attention_transfer.AT(PAIRS, 1000)(BATCH, student, teacher)["at"].item(), rel=1e-5
    )
    torch.manual_seed(0)
    full = overhaul.IEOD(PAIRS, norms, 1e-3, 50, split="halves", ratio=1)(BATCH, student, teacher)
    torch.manual_seed(0)
    assert list(full) == ["task", "inherit"]
    assert full["inherit"].item() == pytest.approx(
        overhaul.OD(PAIRS, norms, 1e-3)(BATCH, student, teacher)["od"].item(), rel=1e-5
    )


@pytest.mark.parametrize("method", ["ie-at", "ie-od"])
def test_no_channels_inheriting_is_exploration_alone(student, teacher, norms, method):
    made = (
        attention_transfer.IEAT(PAIRS, 1, 1, ratio=0)
        if method == "ie-at"
        else overhaul.IEOD(PAIRS, norms, 1, 1, ratio=0)
    )
    assert list(made(BATCH, student, teacher)) == ["task", "explore"]


def test_the_split_of_every_stage_is_its_own_and_that_of_stage_0_is_ie_ft_s():
    first, second = (
        factor_transfer.channel_split(64, 0.5, "random", 3, stage)[0].tolist() for stage in (0, 1)
    )
    assert (
        first != second and first == factor_transfer.channel_split(64, 0.5, "random", 3)[0].tolist()
    )
    assert (
        len(
            {
                tuple(factor_transfer.channel_split(64, 0.5, "random", seed, stage)[0].tolist())
                for seed in range(5)
                for stage in range(3)
            }
        )
        == 15
    )


@pytest.mark.parametrize("make", ["at", "od"])
def test_each_half_gets_gradient_from_its_own_term_only(student, teacher, norms, make):
    method = (
        attention_transfer.IEAT(PAIRS, 1000, 50)
        if make == "at"
        else overhaul.IEOD(PAIRS, norms, 1e-3, 50)
    )
    terms = method(BATCH, student, teacher)
    for name, halves in (("inherit", method.inherit), ("explore", method.explore)):
        for half, pair in zip(halves, PAIRS, strict=True):
            feature = student.features[pair.student if make == "at" else f"{pair.student}_pre"]
            (gradient,) = torch.autograd.grad(terms[name], feature, retain_graph=True)
            assert (
                gradient.abs().sum((0, 2, 3)) > 0
            ).nonzero().flatten().tolist() == half.channels.tolist()


# ---------------------------------------------------------------------- gradients, degenerate input


LOSSES = {
    "at": attention_transfer.attention_distance,
    "ie-at": attention_transfer.attention_contrast,
    "od": overhaul.partial_squares,
    "ie-od": measures.EXPLORE["partial-l2"],
    "ab": ab.boundary_squares,
    "tf-kd": lambda x, _: tf_kd.TfKD(0.5, 20.0)(BATCH, Output(x.flatten(1), {}), None)["kd"],
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_by_finite_differences(name):
    student, teacher = random(B, 3, 2, 2), random(B, 3, 2, 2, seed=1)
    assert torch.autograd.gradcheck(
        lambda x: LOSSES[name](x, teacher), student.requires_grad_(), atol=1e-6
    )


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    "kind",
    ["zero student", "zero teacher", "both zero", "equal", "constant", "huge", "tiny", "one"],
)
def test_degenerate_input_gives_a_finite_value_and_gradient(name, kind):
    student, teacher = random(B, 3, 2, 2).float(), random(B, 3, 2, 2, seed=1).float()
    match kind:
        case "zero student" | "zero teacher" | "both zero":
            student, teacher = (
                student * (kind == "zero teacher"),
                teacher * (kind == "zero student"),
            )
        case "equal":
            teacher = student.clone()
        case "constant":
            student, teacher = torch.ones_like(student), -torch.ones_like(teacher)
        case "huge":
            student, teacher = 1e15 * student, 1e15 * teacher
        case "tiny":
            student, teacher = 1e-30 * student, 1e-30 * teacher
        case "one":
            student, teacher = student[:1], teacher[:1]
            if name == "tf-kd":
                return
    student.requires_grad_()
    loss = LOSSES[name](student, teacher)
    loss.backward()
    assert loss.isfinite() and student.grad.isfinite().all()


# ---------------------------------------------------------------------- runs


def run_of(method: str, **fields) -> Run:
    """A run with networks that were never trained."""
    config = tiny(method, **fields)
    torch.manual_seed(9)
    parents = (
        {"teacher": build_network(config.teacher, config).eval()} if config.has_teacher else {}
    )
    return build_run(config, parents, torch.device("cpu"))


def step(run: Run, epoch: int = 0, count: int = 64) -> dict[str, torch.Tensor]:
    loop.begin(run, epoch)
    images, labels, _ = run.dataset.train
    return loop.step(
        run, images[:count].float() / 128 - 0.5, Batch(labels[:count], torch.arange(count), epoch)
    )


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("epoch", [0, 2])  # of a staged method one in each stage
def test_what_a_stage_uses_is_trained_and_the_rest_stands_still(method, epoch):
    run = run_of(method, init_epochs=2)
    step(run, 0), step(run, 2)  # every part has momentum now
    before = {name: p.detach().clone() for name, p in run.learner.named_parameters()}
    step(run, epoch)
    moved = {name for name, p in run.learner.named_parameters() if not torch.equal(p, before[name])}
    if method not in STAGED:
        resting = set()
    elif epoch == 2:
        resting = {name for name in before if name.startswith("method.")}
    else:
        above = ("student.head",) if method == "ab" else ("student.stages.2", "student.head")
        resting = {name for name in before if name.startswith(above)}
    assert moved == set(before) - resting and (resting or method not in STAGED)


@pytest.mark.parametrize("method", [m for m in ALL if m != "tf-kd"])
def test_the_teacher_gets_no_gradient_and_keeps_its_statistics(method):
    run = run_of(method)
    before = {name: tensor.clone() for name, tensor in run.teacher.state_dict().items()}
    for epoch in range(3):
        step(run, epoch)
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in run.teacher.state_dict().items()
    )
    assert not any(p.requires_grad or p.grad is not None for p in run.teacher.parameters())


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("epoch", [0, 2])
def test_a_step_looks_at_no_value(monkeypatch, method, epoch):
    """On the meta device there are none: what would wait for the device, or branch on a value,
    raises. So it can be captured.
    """
    monkeypatch.setattr("iekd.training.teacher.fuse", lambda network: network)  # as on a GPU
    run = run_of(method)
    learner = run.learner.to("meta")
    images = torch.empty(16, 1, 8, 8, device="meta")
    labels = torch.empty(16, dtype=torch.long, device="meta")
    teacher = run.teacher.to("meta")(images) if run.teacher else None
    sum(
        learner["method"](
            Batch(labels, labels, epoch), learner["student"](images), teacher
        ).values()
    ).backward()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", ALL)
def test_terms_and_gradients_can_be_captured_in_a_cuda_graph(method):
    run, device = run_of(method), torch.device("cuda")
    learner, teacher = run.learner.to(device), run.teacher.to(device) if run.teacher else None
    images, labels = torch.randn(32, 1, 8, 8, device=device), torch.arange(32, device=device) % 10

    def terms():
        learner.zero_grad()
        taught = teacher(images) if teacher else None
        loss = sum(
            learner["method"](Batch(labels, labels), learner["student"](images), taught).values()
        )
        loss.backward()
        return loss

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            terms()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = terms()
    graph.replay()
    first = captured.item()
    images.normal_()
    graph.replay()
    assert captured.item() != first
    torch.testing.assert_close(captured.clone(), terms())


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("count", [1, 2])
def test_a_batch_of_one_or_two(method, count):
    run = run_of(method)
    assert all(term.isfinite() for epoch in (0, 2) for term in step(run, epoch, count).values())


@pytest.mark.parametrize("method", ALL)
def test_the_loss_of_a_method_goes_down_on_one_batch(method):
    run = run_of(method, lr=0.01)
    losses = [
        sum(v for k, v in step(run, 0).items() if k != "train_error").item() for _ in range(30)
    ]
    assert np.mean(losses[-3:]) < 0.8 * losses[0]


# ---------------------------------------------------------------------- configuration


@pytest.mark.parametrize("method", STAGED)
def test_the_first_stage_must_leave_epochs_for_the_second(method):
    with pytest.raises(
        ValueError,
        match=r"init_epochs: 5 is not usable; the first stage is part of the 5 epochs, choose 0 to 4",
    ):
        RunConfig.create("smoke", method=method, epochs=5, init_epochs=5)
    RunConfig.create("smoke", method="kd", epochs=5, init_epochs=5)  # not read


def test_tf_kd_has_no_teacher():
    config = RunConfig.create("smoke", method="tf-kd", teacher="resnet56")
    assert config.parents() == {} and config.teacher == "none" and config.pair == config.student
    assert config == RunConfig.create("smoke", method="tf-kd", teacher="none")


# ---------------------------------------------------------------------- pairs


def names(
    method: str, student: str, teacher: str, dataset: str = "cifar10"
) -> list[tuple[str, str]]:
    config = RunConfig.create(
        "paper", dataset=dataset, method=method, student=student, teacher=teacher
    )
    return [(pair.student, pair.teacher) for pair in methods_of.compared(config)]


def test_stages_are_compared_by_size():
    three = [(f"stage{k}", f"stage{k}") for k in (1, 2, 3)]
    for student, teacher in (
        ("resnet20", "resnet56"),
        ("resnet20", "wrn40_1"),
        ("vgg13", "wrn46_4"),
        ("wrn16_1", "wrn16_2"),
    ):
        assert names("od", student, teacher) == three
        assert names("fitnet", student, teacher) == three[1:2]
    assert names("at", "mobilenetv2x0.5", "resnet56") == [
        ("stage1", "stage2"),
        ("stage2", "stage3"),
    ]
    assert names("ab", "vgg13", "vgg13") == [
        *three,
        ("stage5", "stage5"),
    ]  # stages 4 and 5 have one size: the last of them
    assert names("at", "mobilenetv2x0.5", "vgg13", "fashion-mnist") == [
        ("stage1", "stage2"),
        ("stage2", "stage3"),
    ]
    assert names("kd", "vgg13", "resnet20") == names("tf-kd", "vgg13", "none") == []


def test_channels_of_a_pair():
    config = RunConfig.create("paper", method="at", student="resnet20", teacher="wrn40_2")
    assert [pair[2:] for pair in methods_of.compared(config)] == [(16, 32), (32, 64), (64, 128)]


def test_networks_without_a_common_size_are_refused():
    ours, theirs = (
        {"stage1_pre": (4, 9, 9), "stage1": (4, 9, 9), "pooled": (4,)},
        {"stage1": (4, 8, 8), "stage2": (4, 4, 4)},
    )
    for choose in (features.stages, features.middle):
        with pytest.raises(
            PairError,
            match=r"no stage of both has the same .* the student has \[\(9, 9\)\], .*\[\(8, 8\), \(4, 4\)\]",
        ):
            choose(ours, theirs)
    with pytest.raises(
        PairError, match=r"the student gives \(9, 9\) and the teacher gives \(4, 4\)"
    ):
        features.last(ours, theirs)


@pytest.mark.parametrize("method", [m for m in ALL if m != "tf-kd"])
def test_such_a_pair_is_refused_before_anything_trains(monkeypatch, method):
    shapes = {"resnet8x0.25": {"stage1": (4, 9, 9)}, "resnet8x0.5": {"stage1": (4, 8, 8)}}
    monkeypatch.setattr(networks, "feature_shapes", lambda name, image: shapes[name])
    monkeypatch.setattr(runner, "fit", lambda *_: pytest.fail("trained"))
    with pytest.raises(
        TrainingError,
        match=rf"/{method}.*: {method} cannot compare resnet8x0.25 with resnet8x0.5: no stage",
    ):
        runner.train(tiny(method), progress=False)


@pytest.mark.parametrize(
    "fields", [{}, dict(dataset="cifar10", image_size=16), dict(dataset="fashion-mnist")]
)
def test_the_shape_of_the_images_is_known_without_them(fields):
    config = tiny(**fields)
    facts = data.FACTS[config.dataset]
    assert data.image_shape(config) == (
        facts.channels,
        *(2 * [config.image_size or {"digits": 8, "fashion-mnist": 28}[config.dataset]]),
    )


# --------------------------------------------------------------------- the networks' normalisations


@pytest.mark.parametrize(
    "name", ["resnet8", "resnet14x0.5", "wrn10_1", "wrn16_2", "vgg13", "mobilenetv2x0.5"]
)
def test_norms_end_the_stages(name):
    network = networks.build(name, 10).eval()
    seen = {}
    for stage, norm in network.norms.items():
        norm.register_forward_hook(lambda _, __, output, stage=stage: seen.update({stage: output}))
    features = network(torch.randn(2, 3, 16, 16)).features
    assert [f"{stage}_pre" for stage in network.norms] == [
        name for name in features if name.endswith("_pre")
    ]
    for stage, output in seen.items():
        before = features[f"{stage}_pre"]
        if name.startswith(
            "resnet"
        ):  # the shortcut, an activation unless it is projected, comes on top
            assert output.shape == before.shape and (
                stage != "stage1" or (before - output).min() >= 0
            )
        else:
            assert torch.equal(output, before)
