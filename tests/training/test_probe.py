"""The probe sees what a loss asks for, and changes nothing."""

import pytest
import torch
from tiny import content, tiny
from torch.nn import functional as F

from iekd.data.augment import normalise
from iekd.method import measures
from iekd.training import loop, member, probe, runner

pytestmark = pytest.mark.usefixtures("lent")

HALVES = {"inherit", "explore"}
PARTS = {"ft": {"ft"}, "ie-ft": HALVES, "ie-at": HALVES, "ie-od": HALVES, "ie-dml": HALVES}
KINDS = ("share", "negative", "loss", "rolled", "mean", "gradient", "cka")


def train(config):
    return runner.train(config, progress=False)


@pytest.fixture
def run():
    """A trained run, as it was at its end, and its configuration."""

    def trained(method: str, **fields):
        config = tiny(method, **fields)
        train(config)
        return config, runner.load_run(config)

    return trained


@pytest.mark.parametrize("fields", [{}, dict(precision="bf16")])
@pytest.mark.parametrize("method", PARTS)
def test_a_run_is_the_same_with_and_without_it(method, fields, tmp_path, monkeypatch):
    seen = train(tiny(method, **fields))
    monkeypatch.setenv("IEKD_RUNS", str(tmp_path / "blind"))
    monkeypatch.setattr(member, "probe", lambda run: {})
    blind = train(tiny(method, **fields))
    assert seen.weights == blind.weights
    plain = {name: curve for name, curve in seen.history.items() if not name.startswith("probe_")}
    assert plain == blind.history and len(plain) < len(seen.history)


@pytest.mark.parametrize("method", PARTS)
def test_every_epoch_has_every_column(method):
    history = train(tiny(method)).history
    ends = ("", "_peer") if method == "ie-dml" else ("",)
    expected = {
        f"probe_{kind}_{part}{end}" for kind in KINDS for part in PARTS[method] for end in ends
    }
    expected |= {f"probe_{kind}_target{end}" for kind in ("share", "negative") for end in ends}
    assert expected == {name for name in history if name.startswith("probe_")}
    assert all(len(history[name]) == 3 and None not in history[name] for name in expected)


@pytest.mark.parametrize("method", ["supervised", "kd", "od", "factor-ae"])
def test_methods_without_parts_are_left_alone(method):
    assert not [name for name in train(tiny(method)).history if name.startswith("probe_")]


def test_buffers_and_mode_are_as_before(run):
    _, trained = run("ie-ft")
    trained.learner.train(False)
    trained.learner["student"].train()
    before = {name: tensor.clone() for name, tensor in trained.learner.state_dict().items()}
    probe.probe(trained)
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in trained.learner.state_dict().items()
    )
    assert trained.learner["student"].training and not trained.learner["method"].training


def test_the_last_row_is_that_of_the_trained_weights(run):
    config, trained = run("ie-ft")
    last = {
        name: curve[-1]
        for name, curve in train(config).history.items()
        if name.startswith("probe_")
    }
    assert probe.probe(trained) == pytest.approx(last, rel=1e-4, abs=1e-6)


def test_values_are_those_of_the_whole_computation(run):
    """Written once more, without the short cuts: one graph from the images to every term."""
    _, trained = run("ie-ft")
    found = probe.probe(trained)
    learner = trained.learner.train()
    labels = trained.dataset.train.labels[: probe.IMAGES]
    images = normalise(trained.dataset.train.images[: probe.IMAGES], trained.mean, trained.std)
    student, teacher = learner["student"](images), trained.teacher(images)
    half = learner["method"].halves["explore"]
    factor = half.encoder(student.feature[:, half.channels])
    target = teacher.features["factor"]
    unit = F.normalize(factor.flatten(1))
    assert found["probe_share_explore"] == pytest.approx(
        1 - unit.mean(0).norm().item() ** 2, rel=1e-4
    )
    assert found["probe_negative_explore"] == pytest.approx((factor < 0).double().mean().item())
    term = -50 * measures.l1(factor, target)
    assert found["probe_loss_explore"] == pytest.approx(term.item(), rel=1e-5)
    turned = torch.cat([factor[-1:], factor[:-1]])
    assert found["probe_rolled_explore"] == pytest.approx(
        -50 * measures.l1(turned, target).item(), rel=1e-5
    )
    pull = torch.autograd.grad(term, student.feature, retain_graph=True)[0].norm()
    task = torch.autograd.grad(F.cross_entropy(student.logits, labels), student.feature)[0].norm()
    assert found["probe_gradient_explore"] == pytest.approx((pull / task).item(), rel=1e-3)


def test_share_tells_a_constant_from_factors_that_look_at_the_image():
    torch.manual_seed(0)
    constant = torch.randn(1, 8, 4, 4).expand(64, -1, -1, -1)
    assert probe.share(constant).item() == pytest.approx(0, abs=1e-6)
    assert probe.share(torch.randn(64, 8, 4, 4)).item() == pytest.approx(1 - 1 / 64, abs=3e-3)
    opposite = torch.cat([constant[:32], -constant[:32]])
    assert probe.share(opposite).item() == pytest.approx(1, abs=1e-6)


def test_training_error_is_that_of_the_evaluation_mode(run):
    config, trained = run("supervised", augment="standard")
    metric = train(config).metrics["last"]
    assert metric.train_eval_error == pytest.approx(
        loop.evaluate(trained, "train")["error"], abs=1e-4
    )
    assert train(config).history["train_eval_error"][:-1] == [None, None]


def test_packs_hold_the_same_probe(tmp_path, monkeypatch):
    configs = [tiny("ft"), tiny("ie-ft"), tiny("ie-ft", explore_target="shuffled")]
    alone = [content(train(config)) for config in configs]
    monkeypatch.setenv("IEKD_RUNS", str(tmp_path / "packed"))
    packed = [content(record) for record in runner.train_pack(configs, progress=False)]
    assert [one["history"] for one in packed] == [one["history"] for one in alone]
