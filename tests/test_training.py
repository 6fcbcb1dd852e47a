"""The loop: the same run twice, a killed run, an active method, a frozen teacher."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from tiny import SMALL

from iekd import records, store, training
from iekd.config import RunConfig
from iekd.training import TrainingError, evaluate, learning_rate, load_network, make_run, step, train, train_epoch

CPU = torch.device("cpu")


@pytest.fixture
def tiny():
    """Fields of a run that takes about a second."""
    return SMALL


def content(record):
    """A record without what may differ between two equal runs."""
    return {k: v for k, v in record.to_json().items() if k not in ("started", "seconds", "images_per_second")}


def first_batch(run, size=16):
    images, labels, _ = run.dataset.train
    return training.augment.normalise(images[:size], run.mean, run.std), labels[:size]


@pytest.mark.parametrize("method", ["supervised", "kd", "ft", "ie-ft"])
def test_every_method_trains_and_a_second_run_is_the_same(tiny, runs, method):
    config = RunConfig.create(method=method, **tiny)
    first = train(config, progress=False)
    assert first.history["loss"][-1] < first.history["loss"][0]
    assert content(train(config, progress=False, again=True)) == content(first)


def test_a_finished_run_is_loaded_not_trained(tiny, monkeypatch):
    config = RunConfig.create(**tiny)
    first = train(config, progress=False)
    monkeypatch.setattr(training, "_fit", lambda *_: pytest.fail("trained again"))
    assert content(train(config, progress=False)) == content(first)


CHILD = """
import sys, json, torch
torch.set_num_threads(1)
from iekd import training
from iekd.config import RunConfig
training.CHECKPOINT_SECONDS = 0
training.train(RunConfig.create(**json.loads(sys.argv[1])), progress=False)
"""


def test_a_run_killed_at_random_moments_ends_with_the_same_record(tiny, runs, monkeypatch):
    fields = {**tiny, "method": "ie-ft", "epochs": 25}
    config = RunConfig.create(**fields)
    monkeypatch.setenv("IEKD_RUNS", str(runs.parent / "whole"))
    whole = train(config, progress=False)
    monkeypatch.setenv("IEKD_RUNS", str(runs))
    checkpoint, kills = store.cache_folder() / f"{config.path}.checkpoint.safetensors", 0
    for _ in range(60):
        child = subprocess.Popen([sys.executable, "-c", CHILD, json.dumps(fields)], env=os.environ)
        stamp = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        while child.poll() is None and (kills >= 3 or not checkpoint.exists() or checkpoint.stat().st_mtime_ns == stamp):
            time.sleep(0.005)  # wait for progress, so that every kill loses something new
        time.sleep(random.random() / 5)
        child.send_signal(signal.SIGKILL) if kills < 3 and child.poll() is None else child.wait()
        kills += child.wait() == -signal.SIGKILL
        if records.find(config):
            break
    assert kills >= 1
    assert content(records.find(config)) == content(whole)


def test_a_damaged_checkpoint_is_set_aside(tiny, capsys):
    config = RunConfig.create(**tiny)
    path = store.cache_folder() / f"{config.path}.checkpoint.safetensors"
    store.write_atomic(path, b"not a checkpoint")
    assert train(config, progress=False).metrics["last"].epoch == config.epochs
    assert path.with_suffix(".damaged").exists()
    assert "cannot be used" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("method", "field", "weights"),
    [("kd", "kd_alpha", (0.0, 0.9)), ("ft", "ft_weight", (0.0, 500.0)), ("ie-ft", "inherit_weight", (0.0, 50.0)), ("ie-ft", "explore_weight", (0.0, 50.0))],
)  # fmt: skip
def test_the_method_is_active(tiny, method, field, weights):
    records_ = [train(RunConfig.create(method=method, **tiny, **{field: weight}), progress=False) for weight in weights]
    assert records_[0].weights != records_[1].weights
    assert records_[0].history["loss_task"] != records_[1].history["loss_task"]


def test_the_teacher_stays_as_it_is(tiny):
    config = RunConfig.create(method="ie-ft", **tiny)
    for parent in config.parents().values():
        train(parent, progress=False)
    run = make_run(config, CPU)
    before = {name: tensor.clone() for name, tensor in run.teacher.state_dict().items()}
    train_epoch(config, run, 0)
    evaluate(run, "validation")
    assert not any(module.training for module in run.teacher.modules())
    assert all(p.grad is None and not p.requires_grad for p in run.teacher.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.teacher.state_dict().items())
    assert all(p.grad is not None for p in run.learner.parameters())  # every trainable part learns


def test_methods_start_from_the_same_student_and_see_the_same_batches(tiny):
    configs = [RunConfig.create(method=method, **tiny) for method in ("supervised", "kd", "ie-ft")]
    for parent in configs[-1].parents().values():
        train(parent, progress=False)
    made = [make_run(config, CPU) for config in configs]
    states = [run.learner["student"].state_dict() for run in made]
    assert all(torch.equal(states[0][name], state[name]) for state in states[1:] for name in state)
    orders = [training._draw_epoch(config, run.dataset, 1)[0] for config, run in zip(configs, made, strict=True)]
    assert all(torch.equal(orders[0], order) for order in orders)
    other = training._draw_epoch(configs[0], made[0].dataset, 2)[0]
    assert not torch.equal(orders[0], other)


def test_a_loss_that_explodes_stops_the_run_and_says_where(tiny):
    config = RunConfig.create(**{**tiny, "lr": 1e30})
    with pytest.raises(TrainingError, match=r"'task' became (nan|inf) in step \d+ of epoch 1.*Lower lr"):
        train(config, progress=False)
    assert records.find(config) is None


def test_a_pair_that_cannot_be_compared_is_refused_before_training(tiny):
    config = RunConfig.create(method="ft", **{**tiny, "student": "vgg13"})
    with pytest.raises(TrainingError, match="equal height and width"):
        train(config, progress=False)


def test_step_reports_the_terms_of_the_loss(tiny):
    config = RunConfig.create(method="ie-ft", **tiny)
    for parent in config.parents().values():
        train(parent, progress=False)
    run = make_run(config, CPU)
    terms = step(run, *first_batch(run))
    assert list(terms) == ["task", "inherit", "explore", "train_error"]
    assert not any(term.requires_grad for term in terms.values())


def test_a_trained_network_gives_the_error_of_its_record(tiny):
    config = RunConfig.create(**tiny)
    record = train(config, progress=False)
    network, run = load_network(config), make_run(config, CPU)
    images, labels, _ = run.dataset.test
    wrong = network(training.augment.normalise(images, run.mean, run.std)).logits.argmax(1) != labels
    assert 100 * wrong.float().mean().item() == pytest.approx(record.metrics["last"].test_error, abs=0.2)


def test_schedules():
    steps = RunConfig.create("paper", method="supervised")
    assert [learning_rate(steps, epoch) for epoch in (0, 79.9, 80, 119.9, 120)] == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001])
    cycle = RunConfig.create("class", method="supervised")
    assert [learning_rate(cycle, epoch) for epoch in (0, 1.5, 3, 9, 15)] == pytest.approx([0, 0.05, 0.1, 0.05, 0], abs=1e-12)
