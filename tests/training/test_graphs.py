"""The logic of whole-step graphs on a CPU: a recorder stands for the capture, and replays the step
on what the graph would read.
"""

from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import pytest
import torch
from tiny import tiny

from iekd.errors import ConfigError
from iekd.training import graphs, loop, runner
from iekd.training.graphs import WARM_UP, GraphedPack
from iekd.training.pack import Pack

pytestmark = pytest.mark.usefixtures("lent")

EPOCHS = 5
CASES = {
    "ie-ft": {},
    "ft": {},
    "crd": {},
    "dml": {},
    "fitnet": {"init_epochs": 2},
    "ab": {"init_epochs": 2},
    "ie-dml": {"turns": "epoch"},
}


class Recorder:
    """`graphs.Streams` without a GPU. A captured step computes nothing."""

    captures = 0

    def __init__(self, count):
        self.count = count

    def branch(self, k):
        assert k < self.count
        return nullcontext()

    def join(self):
        pass

    @contextmanager
    def beside(self):
        yield

    def capture(self, step):
        Recorder.captures += 1
        with self.as_it_was():
            names, row = step()
        return Recording(step, row), (names, row)

    @contextmanager
    def as_it_was(self):
        """Put back, in place, whatever a step of these members has changed."""
        tensors = [t for run in self.runs for t in moving(run)]
        before = [t.clone() for t in tensors]
        yield
        for tensor, value in zip(tensors, before, strict=True):
            tensor.data.copy_(value)


class Recording(NamedTuple):
    """The graph: each replay computes the step, and fills the same row."""

    step: Callable
    row: torch.Tensor

    def replay(self):
        self.row.copy_(self.step()[1])


def moving(run):
    return [
        *run.learner.state_dict().values(),
        *(s["momentum_buffer"] for s in run.optimiser.state.values()),
    ]


@pytest.fixture
def recorder(monkeypatch):
    def use(runs):
        monkeypatch.setattr(Recorder, "runs", runs, raising=False)
        monkeypatch.setattr(Recorder, "captures", 0)
        monkeypatch.setattr(graphs, "Streams", Recorder)
        return Recorder

    return use


def rows_of(configs, kind, runs):
    together = kind(list(zip(configs, runs, strict=True)))
    return [together.train_epoch(epoch) for epoch in range(EPOCHS)]


@pytest.mark.parametrize("method", CASES)
def test_replayed_steps_are_those_of_the_plain_loop(method, recorder):
    """Also where a method changes with the epoch: what the graph has captured must never be used in
    another phase.
    """
    config = tiny(
        method, batch_size=24, epochs=EPOCHS, teachers=1, **CASES[method]
    )  # 200 images: the last batch is smaller
    plain = rows_of([config], Pack, [runner.make_run(config)])
    runs = [runner.make_run(config)]
    recorder(runs)
    assert rows_of([config], GraphedPack, runs) == plain
    # Of the full batches one in each phase; the smaller ones come once an epoch, and only those of
    # the phases that last are captured.
    phases, lasting = {"fitnet": (2, 0), "ab": (2, 0), "ie-dml": (4, 0)}.get(method, (1, 1))
    assert Recorder.captures == phases + lasting


def test_a_weight_that_falls_is_filled_and_not_captured(recorder):
    """FitNet's, in a stage that lasts long enough for the smaller batches to be captured too."""
    config = tiny("fitnet", batch_size=24, epochs=EPOCHS, teachers=1, init_epochs=0)
    plain = rows_of([config], Pack, [runner.make_run(config)])
    runs = [runner.make_run(config)]
    recorder(runs)
    assert rows_of([config], GraphedPack, runs) == plain and Recorder.captures == 2


def test_a_pack_is_captured_once(recorder):
    configs = [
        tiny(method, seed=seed, batch_size=24, epochs=EPOCHS)
        for seed in (0, 1)
        for method in ("supervised", "kd", "ie-ft")
    ]
    plain = rows_of(configs, Pack, [runner.make_run(config) for config in configs])
    runs = [runner.make_run(config) for config in configs]
    recorder(runs)
    # batches of two sizes
    assert rows_of(configs, GraphedPack, runs) == plain
    assert Recorder.captures == 2


def test_the_first_steps_are_computed_step_by_step(recorder, monkeypatch):
    config = tiny("kd", batch_size=24)
    runs = [runner.make_run(config)]
    recorder(runs)
    calls = []
    monkeypatch.setattr(Recorder, "beside", lambda self: calls.append(1) or nullcontext())
    GraphedPack([(config, runs[0])]).train_epoch(0)
    assert len(calls) == WARM_UP + 1  # the last batch is smaller


def test_a_rate_on_the_device_is_filled_in_place():
    rate = torch.tensor(0.5)
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], rate)
    loop.set_rate(optimiser, 0.25)
    assert rate == 0.25 and optimiser.param_groups[0]["lr"] is rate


# ---------------------------------------------------------------------- when a capture fails

FAILURES = {
    "a call that is not permitted": RuntimeError(
        "CUDA error: operation not permitted when stream is capturing\nCUDA kernel errors might"
    ),
    "no memory": torch.OutOfMemoryError("CUDA out of memory."),
    "an old driver": NotImplementedError("graphs"),
    "no words": RuntimeError(),
    "a wrong attribute": AttributeError("module 'torch.cuda' has no attribute 'graph'"),
    "an assertion": AssertionError("capture"),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_a_capture_that_fails_costs_one_line_and_no_number(recorder, monkeypatch, capsys, kind):
    config = tiny("kd", batch_size=24, epochs=EPOCHS)
    plain = rows_of([config], Pack, [runner.make_run(config)])
    runs = [runner.make_run(config)]
    recorder(runs)
    monkeypatch.setattr(
        Recorder, "capture", lambda self, step: step_then_fail(self, step, FAILURES[kind])
    )
    capsys.readouterr()  # the bars of the teacher's training
    assert rows_of([config], GraphedPack, runs) == plain
    said = "".join(capsys.readouterr())
    assert (
        said.count("no CUDA graphs (") == 1
        and "continuing step by step, with the same numbers; IEKD_GRAPHS=off" in said
    )
    assert len(said.strip().splitlines()) == 1


def step_then_fail(self, step, error):
    """As on a GPU: the step's Python has run, nothing was computed, then the capture fails."""
    with self.as_it_was():
        step()
    raise error


def test_a_capture_that_fails_in_a_later_phase_or_for_a_pack_changes_no_number(
    recorder, monkeypatch
):
    configs = [
        tiny(method, seed=seed, batch_size=24, epochs=EPOCHS)
        for seed in (0, 1)
        for method in ("supervised", "kd")
    ]
    plain = rows_of(configs, Pack, [runner.make_run(config) for config in configs])
    runs = [runner.make_run(config) for config in configs]
    recorder(runs)
    real = Recorder.capture

    def second_fails(self, step):
        return (
            real(self, step)
            if Recorder.captures == 0
            else step_then_fail(self, step, RuntimeError("no"))
        )

    monkeypatch.setattr(Recorder, "capture", second_fails)
    assert rows_of(configs, GraphedPack, runs) == plain and Recorder.captures == 1


def test_a_signal_while_capturing_still_stops(recorder, monkeypatch):
    config = tiny("kd", batch_size=24)
    runs = [runner.make_run(config)]
    recorder(runs)
    monkeypatch.setattr(
        Recorder, "capture", lambda self, step: step_then_fail(self, step, KeyboardInterrupt())
    )
    with pytest.raises(KeyboardInterrupt):
        rows_of([config], GraphedPack, runs)


@pytest.mark.parametrize(
    ("word", "wanted"),
    [(None, True), ("on", True), ("off", False), (" OFF ", False), ("Off", False)],
)
def test_graphs_can_be_switched_off(monkeypatch, word, wanted):
    monkeypatch.delenv("IEKD_GRAPHS", raising=False)
    if word is not None:
        monkeypatch.setenv("IEKD_GRAPHS", word)
    assert graphs.graphs_wanted() is wanted


@pytest.mark.parametrize("word", ["", "0", "no", "false", "of"])
def test_another_word_for_off_is_refused(monkeypatch, word):
    monkeypatch.setenv("IEKD_GRAPHS", word)
    with pytest.raises(ConfigError, match="IEKD_GRAPHS: .* is not usable; choose on or off"):
        graphs.graphs_wanted()
