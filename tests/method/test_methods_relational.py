"""SP, CC, VID, RKD, PKT, NST, CRD: each against a reference in float64 written from its paper, and
what its loss must and must not see.
"""

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy import special, stats
from tiny import tiny
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from iekd.baselines import cc, crd, vid
from iekd.baselines.cc import CC
from iekd.baselines.crd import CRD
from iekd.baselines.nst import NST
from iekd.baselines.pkt import PKT
from iekd.baselines.rkd import RKD
from iekd.baselines.sp import SP
from iekd.baselines.vid import VID
from iekd.errors import TrainingError
from iekd.method.features import Batch, Pair
from iekd.networks import Output
from iekd.records import store
from iekd.training import checkpoint, runner
from iekd.training.loop import train_epoch
from iekd.training.runner import make_run

pytestmark = pytest.mark.usefixtures("lent")

B, H, CLASSES, IMAGES = 5, 3, 3, 12
OURS, THEIRS = (
    {"stage1": 3, "stage2": 4, "stage3": 6},
    {"stage1": 5, "stage2": 6, "stage3": 8},
)  # channels of student and teacher
LABELS = torch.arange(IMAGES) % CLASSES  # of the training images
BATCH = Batch(LABELS[3 : 3 + B], torch.arange(3, 3 + B))
NAMES = ["sp", "cc", "vid", "rkd", "pkt", "nst", "crd"]
RELATIONS = ["sp", "cc", "rkd", "pkt", "nst"]  # without trainable parts


def output(seed: int, channels: dict[str, int], dtype=torch.double, batch: int = B) -> Output:
    """Features after a ReLU, and leaves of autograd."""
    generator = torch.Generator().manual_seed(seed)
    features = {
        name: torch.randn(batch, c, H, H, generator=generator).relu()
        for name, c in channels.items()
    }
    features["pooled"] = features["stage3"].mean((2, 3))
    features = {name: value.to(dtype).requires_grad_() for name, value in features.items()}
    return Output(
        torch.randn(batch, CLASSES, generator=generator).to(dtype).requires_grad_(), features
    )


@pytest.fixture
def student():
    return output(1, OURS)


@pytest.fixture
def teacher():
    return output(2, THEIRS)


def build(
    name: str, ours=OURS, theirs=THEIRS, weight: float = 2.0, dtype=torch.double
) -> nn.Module:
    torch.manual_seed(0)
    stages = [Pair(stage, stage, ours[stage], theirs[stage]) for stage in ours]
    method = {
        "sp": lambda: SP(weight),
        "cc": lambda: CC(weight),
        "rkd": lambda: RKD(weight),
        "pkt": lambda: PKT(weight),
        "nst": lambda: NST(stages[-1], weight),
        "vid": lambda: VID(stages, weight),
        "crd": lambda: CRD(ours["stage3"], theirs["stage3"], LABELS, weight),
    }[name]()
    return method.double() if dtype == torch.double else method


def distance(
    method: nn.Module, student: Output, teacher: Output, batch: Batch = BATCH
) -> torch.Tensor:
    """What the method adds to the task."""
    return sum(term for name, term in method(batch, student, teacher).items() if name != "task")


def changed(found: Output, **features) -> Output:
    return Output(found.logits, {**found.features, **features})


def scaled(found: Output, factor: float) -> Output:
    return changed(
        found,
        **{
            name: (value.detach() * factor).requires_grad_()
            for name, value in found.features.items()
        },
    )


def numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


# ---------------------------------------------------------------------- references


def sp_reference(student, teacher):
    """G = Q Q^T, rows normalised, squared Frobenius norm of the difference over b^2."""
    rows = []
    for found in (student, teacher):
        q = numpy(found.feature).reshape(B, -1)
        rows.append(unit(np.array([[a @ b for b in q] for a in q])))
    return np.linalg.norm(rows[1] - rows[0], "fro") ** 2 / B**2


def cc_reference(student, teacher):
    """Taylor series to order 2 of the Gaussian RBF, gamma 0.4; mean square over all pairs."""
    total, (s, t) = 0.0, (unit(numpy(found.features["pooled"])) for found in (student, teacher))
    for i in range(B):
        for j in range(B):
            ours, theirs = (
                sum(
                    math.exp(-0.8) * 0.8**p / math.factorial(p) * (x[i] @ x[j]) ** p
                    for p in (0, 1, 2)
                )
                for x in (s, t)
            )
            total += (ours - theirs) ** 2
    return total / B**2


def huber(a, b):
    return 0.5 * (a - b) ** 2 if abs(a - b) <= 1 else abs(a - b) - 0.5


def rkd_reference(student, teacher):
    """Over distinct pairs and triples, means instead of sums; 1 and 2 times."""
    s, t = (numpy(found.features["pooled"]) for found in (student, teacher))
    pairs, triples = list(permutations(range(B), 2)), list(permutations(range(B), 3))
    mu_s, mu_t = (np.mean([np.linalg.norm(x[i] - x[j]) for i, j in pairs]) for x in (s, t))
    distances = np.mean(
        [
            huber(np.linalg.norm(s[i] - s[j]) / mu_s, np.linalg.norm(t[i] - t[j]) / mu_t)
            for i, j in pairs
        ]
    )

    def angle(x, i, j, k):
        return unit(x[i] - x[j]) @ unit(x[k] - x[j])

    return distances + 2 * np.mean([huber(angle(s, *ijk), angle(t, *ijk)) for ijk in triples])


def pkt_reference(student, teacher):
    """Conditional probabilities with the cosine kernel, and their KL divergence, mean over distinct
    pairs.
    """
    p, q = [], []
    for found, rows in ((teacher, p), (student, q)):
        x = unit(numpy(found.features["pooled"]))
        for i in range(B):
            kernel = np.array([(x[i] @ x[j] + 1) / 2 for j in range(B) if j != i])
            rows.append(kernel / kernel.sum())
    return stats.entropy(np.array(p), np.array(q), axis=1).sum() / (B * (B - 1))


def nst_reference(student, teacher):
    """With k(x, y) = (x.y)^2: three mean kernels, for each sample."""

    def kernel(xs, ys):
        return np.mean([[(x @ y) ** 2 for y in ys] for x in xs])

    total = 0.0
    for ours, theirs in zip(numpy(student.feature), numpy(teacher.feature), strict=True):
        s, t = (x.reshape(len(x), -1) for x in (ours, theirs))
        s, t = (
            x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-300) for x in (s, t)
        )  # a dead channel stays zero
        total += kernel(t, t) + kernel(s, s) - 2 * kernel(s, t)
    return total / B


def vid_reference(student, teacher):
    """-log of a Gaussian density with one variance per channel, from 5, without its constant; mean
    over everything, sum over stages.
    """
    total, method = 0.0, build("vid")
    for stage, density in zip(OURS, method.densities, strict=True):
        mean, t = numpy(density.mean(student.features[stage])), numpy(teacher.features[stage])
        total += np.mean(-stats.norm.logpdf(t, mean, math.sqrt(5.0)) - 0.5 * math.log(2 * math.pi))
    return total


def crd_reference(student, teacher):
    """For every anchor on both sides: the critic as a probability, the mean over all images of
    other classes times N.
    """
    method = build("crd")
    heads = [(method.student, student), (method.teacher, teacher)]
    embeddings = [
        unit(numpy(found.features["pooled"]) @ numpy(head.weight).T + numpy(head.bias))
        for head, found in heads
    ]
    memories = [numpy(head.memory).copy() for head, _ in heads]
    positives = [memory[BATCH.index] for memory in memories]  # copies, of before
    for memory, embedding in zip(memories, embeddings, strict=True):
        memory[BATCH.index] = unit(0.5 * memory[BATCH.index] + 0.5 * embedding)
    odds = 16384 * math.exp(1 / (2 * 128 * 0.1**2))

    def critic(x, y):
        return np.exp(x @ y / 0.1) / (np.exp(x @ y / 0.1) + odds)

    total = 0.0
    for side in (0, 1):
        for i, label in enumerate(BATCH.labels):
            total -= np.log(critic(embeddings[side][i], positives[1 - side][i]))
            others = [
                z for z, other in zip(memories[1 - side], LABELS, strict=True) if other != label
            ]
            total -= 16384 * np.mean([np.log1p(-critic(embeddings[side][i], z)) for z in others])
    return total / B


REFERENCES = {
    "sp": sp_reference,
    "cc": cc_reference,
    "vid": vid_reference,
    "rkd": rkd_reference,
    "pkt": pkt_reference,
    "nst": nst_reference,
    "crd": crd_reference,
}


@pytest.mark.parametrize("name", NAMES)
def test_the_value_is_weight_times_the_reference(student, teacher, name):
    terms = build(name, weight=2.0)(BATCH, student, teacher)
    assert list(terms) == ["task", *(["distance", "angle"] if name == "rkd" else [name])]
    task = -special.log_softmax(numpy(student.logits), axis=1)[np.arange(B), BATCH.labels].mean()
    assert terms.pop("task").item() == pytest.approx(task, rel=1e-12)
    expected = REFERENCES[name](student, teacher)
    assert expected > 1e-4
    rough = name in (
        "pkt",
        "vid",
    )  # PKT's kernel has an epsilon, VID's variance begins in single precision
    assert sum(terms.values()).item() == pytest.approx(2 * expected, rel=1e-5 if rough else 1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_single_precision_agrees(student, teacher, name):
    single = [
        Output(f.logits.float(), {k: v.float() for k, v in f.features.items()})
        for f in (student, teacher)
    ]
    both = (
        distance(build(name, dtype=torch.float), *single).item(),
        distance(build(name), student, teacher).item(),
    )
    assert both[0] == pytest.approx(both[1], rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_agrees_with_finite_differences(student, teacher, name):
    method, inputs = build(name), {k: v.detach() for k, v in student.features.items()}
    if name == "crd":  # the memory takes part without gradient: hold it
        for head in (method.student, method.teacher):
            head.remember = lambda index, embedding, head=head: head.memory[index]

    def loss(*features):
        return distance(
            method, changed(student, **dict(zip(inputs, features, strict=True))), teacher
        )

    assert torch.autograd.gradcheck(
        loss, [value.requires_grad_() for value in inputs.values()], atol=1e-6
    )


# ---------------------------------------------------------------------- properties


@pytest.mark.parametrize("name", RELATIONS)
def test_it_is_zero_at_equality_and_positive_elsewhere(student, teacher, name):
    method = build(name, ours=THEIRS)
    assert distance(method, teacher, teacher).item() == pytest.approx(0, abs=1e-14)
    (gradient,) = torch.autograd.grad(
        distance(
            method,
            teacher,
            changed(teacher, **{k: v.detach() for k, v in teacher.features.items()}),
        ),
        teacher.feature if name in ("sp", "nst") else teacher.features["pooled"],
    )
    assert gradient.abs().max() < 1e-12
    assert all(distance(method, output(seed, OURS), teacher) > 1e-4 for seed in range(3, 8))


@pytest.mark.parametrize("name", RELATIONS)
def test_which_are_symmetric(student, teacher, name):
    there, back = (
        distance(build(name), student, teacher).item(),
        distance(build(name, THEIRS, OURS), teacher, student).item(),
    )
    assert (there == pytest.approx(back, rel=1e-10)) == (name != "pkt")


@pytest.mark.parametrize("name", RELATIONS)
def test_the_scale_of_a_network_does_not_count(student, teacher, name):
    method, base = build(name), distance(build(name), student, teacher).item()
    assert distance(method, scaled(student, 7.0), teacher).item() == pytest.approx(base, rel=1e-6)
    assert distance(method, student, scaled(teacher, 1e-3)).item() == pytest.approx(base, rel=1e-6)


@pytest.mark.parametrize(("name", "invariant"), [("cc", True), ("pkt", True), ("rkd", False)])
def test_whether_the_scale_of_one_image_counts(student, teacher, name, invariant):
    sizes = torch.linspace(0.5, 2, B, dtype=torch.double)[:, None]
    other = changed(student, pooled=student.features["pooled"] * sizes)
    base = distance(build(name), student, teacher).item()
    assert (
        distance(build(name), other, teacher).item() == pytest.approx(base, rel=1e-6)
    ) == invariant


def test_nst_does_not_see_the_scale_of_a_channel_nor_their_order(student, teacher):
    other = student.feature * torch.linspace(0.5, 2, 6, dtype=torch.double)[:, None, None]
    base = distance(build("nst"), student, teacher).item()
    assert distance(
        build("nst"), changed(student, stage3=other.flip(1)), teacher
    ).item() == pytest.approx(base, rel=1e-10)


def test_rkd_does_not_see_a_rotation_nor_a_shift(student, teacher):
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.double))[0]
    base = distance(build("rkd"), student, teacher).item()
    moved = changed(student, pooled=student.features["pooled"] @ rotation + 3)
    assert distance(build("rkd"), moved, teacher).item() == pytest.approx(base, rel=1e-9)
    stretched = changed(
        student, pooled=student.features["pooled"] * torch.linspace(0.2, 3, 6, dtype=torch.double)
    )
    assert distance(build("rkd"), stretched, teacher).item() != pytest.approx(base, rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_the_batch_does_not_count(student, teacher, name):
    order = torch.tensor([3, 0, 4, 1, 2])
    turned = [
        changed(found, **{k: v[order] for k, v in found.features.items()})
        for found in (student, teacher)
    ]
    base = distance(build(name), student, teacher).item()
    again = distance(build(name), *turned, Batch(BATCH.labels[order], BATCH.index[order])).item()
    assert again == pytest.approx(base, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "bound"), [("sp", 4 / B), ("nst", 2), ("rkd", 2 * 1.5 + B * (B - 1)), ("cc", 1)]
)
def test_bounds(name, bound):
    values = [
        distance(build(name, weight=1), output(s, OURS), output(s + 1, THEIRS)).item()
        for s in range(0, 40, 2)
    ]
    assert all(0 <= value <= bound for value in values)


def test_the_taylor_series_of_cc_is_close_to_its_kernel(student):
    x = unit(numpy(student.features["pooled"]))
    kernel = np.exp(-0.4 * np.linalg.norm(x[:, None] - x[None], axis=2) ** 2)
    found = numpy(cc.correlation(student.features["pooled"]))
    assert (
        0
        < np.abs(found - kernel).max()
        < math.exp(-0.8) * 0.8**3 / math.factorial(3) * math.exp(0.8)
    )  # Lagrange's remainder


def test_vid_learns_the_variance_that_is_there(teacher):
    """With nothing to be learned of the teacher, mean and variance become its own."""
    torch.manual_seed(0)
    feature = 2 + 0.5 * torch.randn(64, 1, H, H)
    density = vid.Gaussian(1, 1)
    optimiser = torch.optim.Adam(density.parameters(), lr=0.05)
    losses = []
    for _ in range(200):
        optimiser.zero_grad()
        losses.append(density(torch.zeros_like(feature), feature))
        losses[-1].backward()
        optimiser.step()
    variance = nn.functional.softplus(density.alpha).item()
    assert variance == pytest.approx(feature.var().item(), rel=0.1)
    assert (
        losses[-1].item() == pytest.approx(0.5 * (1 + math.log(feature.var().item())), abs=0.05)
        and losses[-1] < losses[0]
    )


# ---------------------------------------------------------------------- CRD's memory


def test_the_memory_of_the_batch_alone_moves(student, teacher):
    method = build("crd")
    before = [head.memory.clone() for head in (method.student, method.teacher)]
    distance(method, student, teacher)
    for head, old in zip((method.student, method.teacher), before, strict=True):
        moved = (head.memory != old).any(1).nonzero().flatten()
        assert moved.tolist() == BATCH.index.tolist()
        assert torch.allclose(head.memory.norm(dim=1), torch.ones(IMAGES, dtype=torch.double))
        assert not head.memory.requires_grad


def test_the_memory_approaches_the_embeddings(student, teacher):
    method = build("crd")
    for _ in range(30):
        distance(method, student, teacher)
    embedding = method.student(student.features["pooled"])
    assert torch.allclose(method.student.memory[BATCH.index], embedding, atol=1e-6)


def test_images_of_the_same_class_are_no_negatives(student, teacher):
    base = distance(build("crd"), student, teacher)
    for image, expected in ((0, False), (1, True)):
        method, batch = (
            build("crd"),
            Batch(BATCH.labels[:1], BATCH.index[:1]),
        )  # class 0; image 0 is of it, image 1 is not
        one = [changed(f, pooled=f.features["pooled"][:1]) for f in (student, teacher)]
        one = [Output(f.logits[:1], f.features) for f in one]
        before = distance(build("crd"), *one, batch)
        method.teacher.memory[image].neg_()
        assert (distance(method, *one, batch) != before) == expected
    assert base.isfinite()


def test_what_the_normaliser_of_crd_stands_for():
    """The mean of e^(cos / tau) between random directions is what the authors' code estimates on
    its first batch.
    """
    generator = torch.Generator().manual_seed(0)
    x, y = (
        unit(torch.randn(1000, crd.SIZE, generator=generator).double().numpy()) for _ in range(2)
    )
    mean = np.exp(x @ y.T / crd.TEMPERATURE).mean()
    assert math.exp(1 / (2 * crd.SIZE * crd.TEMPERATURE**2)) == pytest.approx(mean, rel=0.01)


def test_the_whole_memory_is_the_mean_of_the_papers_draws(student, teacher):
    """N negatives drawn for each anchor, summed, as in the paper: the average of many draws is the
    loss.
    """
    generator = torch.Generator().manual_seed(0)
    anchor, positive, memory = (
        nn.functional.normalize(torch.randn(n, crd.SIZE, generator=generator))
        for n in (B, B, IMAGES)
    )
    negative = BATCH.labels[:, None] != LABELS
    drawn = torch.multinomial(
        negative.float(), crd.NEGATIVES, replacement=True, generator=generator
    )
    critic = (
        crd.log_odds(anchor @ memory.T).sigmoid().gather(1, drawn),
        crd.log_odds((anchor * positive).sum(1)).sigmoid(),
    )
    expected = (-critic[1].log() - torch.log1p(-critic[0]).sum(1)).mean().item()
    assert crd.contrast(anchor, positive, memory, negative).item() == pytest.approx(
        expected, rel=0.01
    )


# ---------------------------------------------------------------------- gradients


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_reaches_the_student_and_all_parts_but_not_the_teacher(student, teacher, name):
    method = build(name)
    frozen = changed(
        teacher, **{k: v.detach() for k, v in teacher.features.items()}
    )  # as the engine gives it
    distance(method, student, frozen).backward()
    seen = {"sp": ["stage3"], "nst": ["stage3"], "vid": [*OURS]}.get(name, ["pooled"])
    for feature, value in student.features.items():
        assert (value.grad is not None and value.grad.abs().sum() > 0) == (feature in seen)
    for parameter_name, parameter in method.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name
    assert bool(list(method.parameters())) == (name in ("vid", "crd"))


# ---------------------------------------------------------------------- degenerate input


def same(found: Output) -> Output:
    """All images alike."""
    return changed(
        found,
        **{
            k: v.detach()[:1].expand_as(v).clone().requires_grad_()
            for k, v in found.features.items()
        },
    )


DEGENERATE = {
    "zero": lambda f: scaled(f, 0.0),
    "tiny": lambda f: scaled(f, 1e-30),
    "huge": lambda f: scaled(f, 1e15),
    "constant": same,
}


@pytest.mark.parametrize("theirs", [None, *DEGENERATE])
@pytest.mark.parametrize("ours", DEGENERATE)
@pytest.mark.parametrize("name", NAMES)
def test_degenerate_features_give_a_finite_loss_and_gradient(name, ours, theirs):
    student = DEGENERATE[ours](output(1, OURS, torch.float))
    teacher = output(2, THEIRS, torch.float)
    loss = distance(
        build(name, dtype=torch.float), student, DEGENERATE[theirs](teacher) if theirs else teacher
    )
    loss.backward()
    assert loss.isfinite()
    assert all(
        value.grad.isfinite().all() for value in student.features.values() if value.grad is not None
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [1, 2])
def test_a_batch_of_one_or_two(name, size):
    student, teacher = (
        output(seed, channels, torch.float, batch=size)
        for seed, channels in ((1, OURS), (2, THEIRS))
    )
    loss = distance(
        build(name, dtype=torch.float),
        student,
        teacher,
        Batch(BATCH.labels[:size], BATCH.index[:size]),
    )
    loss.backward()
    assert loss.isfinite()
    assert all(
        value.grad.isfinite().all() for value in student.features.values() if value.grad is not None
    )
    if size == 1 and name in ("rkd", "pkt"):
        assert loss == 0  # no relations


@pytest.mark.parametrize("name", NAMES)
def test_one_class(student, teacher, name):
    method = build(name)
    if name == "crd":
        method.labels.zero_()  # no image is a negative
    loss = distance(method, student, teacher, Batch(torch.zeros(B, dtype=torch.long), BATCH.index))
    loss.backward()
    assert loss.isfinite() and loss > 0


# --------------------------------------------------------------------- no step waits for the device


@pytest.mark.parametrize("name", NAMES)
def test_no_value_is_read_in_a_step(name):
    """Fake tensors have shapes and no values: .item(), a branch on a value or a boolean index would
    raise.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        method = build(name, dtype=torch.float)
        student, teacher = (
            Output(
                torch.rand(B, CLASSES),
                {
                    **{k: torch.rand(B, c, H, H, requires_grad=True) for k, c in channels.items()},
                    "pooled": torch.rand(B, channels["stage3"], requires_grad=True),
                },
            )
            for channels in (OURS, THEIRS)
        )
        batch = Batch(torch.zeros(B, dtype=torch.long), torch.arange(B))
        sum(method(batch, student, teacher).values()).backward()


# ---------------------------------------------------------------------- in training


CPU = torch.device("cpu")


def test_a_pair_that_does_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr(runner, "fit", lambda *_: pytest.fail("trained"))
    with pytest.raises(
        TrainingError, match=r"nst cannot compare .*Choose a pair with the same down-sampling"
    ):
        runner.train(tiny("nst", teacher="vgg13"), progress=False)


@pytest.mark.parametrize("name", NAMES)
def test_the_published_weight_is_the_default_and_counts(name):
    published = {"sp": 3000, "cc": 100, "vid": 1, "rkd": 25, "pkt": 30000, "nst": 50, "crd": 0.8}
    assert getattr(tiny(name), f"{name}_weight") == published[name]
    run = make_run(tiny(name, **{f"{name}_weight": 4.0}), CPU)
    assert run.learner["method"].weight == 4.0
    assert tiny(name, **{f"{name}_weight": 4.0}).hash != tiny(name).hash


def vector(run) -> torch.Tensor:
    return torch.cat(
        [value.flatten().double() for value in run.learner["student"].state_dict().values()]
    )


@pytest.mark.parametrize("name", NAMES)
def test_switched_off_it_is_the_student_alone_and_switched_on_it_is_not(name):
    ends = []
    for config in (tiny(), tiny(name, **{f"{name}_weight": 0.0}), tiny(name)):
        run = make_run(config, CPU)
        train_epoch(config, run, 1)  # in epoch 0 the rate begins at 0
        ends.append(vector(run))
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_goes_down_and_the_teacher_stays_as_it_is(name):
    config = tiny(name, epochs=6, train_images=128)
    run = make_run(config, CPU)
    teacher = {k: v.clone() for k, v in run.teacher.state_dict().items()}
    parts = {k: v.detach().clone() for k, v in run.learner["method"].named_parameters()}
    history = [train_epoch(config, run, epoch) for epoch in range(6)]
    terms = ["loss_distance", "loss_angle"] if name == "rkd" else [f"loss_{name}"]
    assert sum(history[-1][term] for term in terms) < sum(history[0][term] for term in terms)
    assert all(torch.equal(v, teacher[k]) for k, v in run.teacher.state_dict().items())
    assert not [
        k for k, v in run.learner["method"].named_parameters() if torch.equal(v, parts[k])
    ], "all parts are trained"


@pytest.mark.parametrize("name", ["vid", "crd", "rkd"])
def test_a_resumed_run_is_the_same_run(name):
    config = tiny(name, epochs=3)
    run = make_run(config, CPU)
    train_epoch(config, run, 0)
    checkpoint.save(config, {}, run, [{}], 1.0)
    resumed = make_run(config, CPU)
    assert checkpoint.resume(config, {}, resumed) == ([{}], 1.0)
    for each in (run, resumed):
        train_epoch(config, each, 1)
    assert store.checksum(run.learner.state_dict()) == store.checksum(resumed.learner.state_dict())
    extra = {"vid": "method.densities.0.alpha", "crd": "method.teacher.memory"}.get(name)
    assert extra is None or extra in run.learner.state_dict()


def test_the_memory_of_crd_matters_to_a_resumed_run():
    config = tiny("crd", epochs=3)
    run, forgetful = make_run(config, CPU), make_run(config, CPU)
    for each in (run, forgetful):
        train_epoch(config, each, 0)
    forgetful.learner["method"].teacher.memory.neg_()
    losses = [train_epoch(config, each, 1)["loss_crd"] for each in (run, forgetful)]
    assert losses[0] != losses[1]
