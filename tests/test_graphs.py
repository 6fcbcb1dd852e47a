"""The logic of whole-step graphs on a CPU: a recorder stands for the capture, and replays the step on what the graph would read."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext

import pytest
from tiny import tiny

from iekd import engine, graphs, training
from iekd.graphs import WARM_UP, Graphed

EPOCHS = 5
CASES = {
    "ie-ft": {}, "ft": {}, "crd": {}, "dml": {}, "fitnet": {"init_epochs": 2}, "ab": {"init_epochs": 2}, "ie-dml": {"turns": "epoch"},
}  # fmt: skip


class Recorder:
    """`graphs.Streams` without a GPU. A captured step computes nothing; each replay computes it, and fills the same row."""

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
        self.step = step
        with self.as_it_was():
            names, row = step()
        self.row = row
        return self, (names, row)

    def replay(self):
        self.row.copy_(self.step()[1])

    @contextmanager
    def as_it_was(self):
        """Put back, in place, whatever a step of these members has changed."""
        tensors = [t for run in self.runs for t in moving(run)]
        before = [t.clone() for t in tensors]
        yield
        for tensor, value in zip(tensors, before, strict=True):
            tensor.data.copy_(value)


def moving(run):
    return [*run.learner.state_dict().values(), *(s["momentum_buffer"] for s in run.optimiser.state.values())]


@pytest.fixture
def recorder(monkeypatch):
    def use(runs):
        monkeypatch.setattr(Recorder, "runs", runs, raising=False)
        monkeypatch.setattr(Recorder, "captures", 0)
        monkeypatch.setattr(graphs, "Streams", Recorder)
        return Recorder

    return use


def rows_of(configs, step_all, runs):
    members = list(zip(configs, runs, strict=True))
    return [engine.train_epochs(members, epoch, step_all) for epoch in range(EPOCHS)]


@pytest.mark.parametrize("method", CASES)
def test_replayed_steps_are_those_of_the_plain_loop(method, recorder):
    """Also where a method changes with the epoch: what the graph has captured must never be used in another phase."""
    config = tiny(method, batch_size=24, epochs=EPOCHS, teachers=1, **CASES[method])  # 200 images: the last batch is smaller
    plain = rows_of([config], None, [training.make_run(config)])
    runs = [training.make_run(config)]
    recorder(runs)
    assert rows_of([config], Graphed(), runs) == plain
    phases = {"fitnet": 1 + (EPOCHS - 2), "ab": 2, "ie-dml": EPOCHS}  # two epochs of stage 1 are one phase
    assert Recorder.captures == phases.get(method, 1)


def test_a_pack_is_captured_once_and_again_when_it_shrinks(recorder):
    configs = [tiny(method, seed=seed, batch_size=24, epochs=EPOCHS) for seed in (0, 1) for method in ("supervised", "kd", "ie-ft")]
    plain = rows_of(configs, None, [training.make_run(config) for config in configs])
    runs = [training.make_run(config) for config in configs]
    engine.share_teachers(runs)
    recorder(runs)
    step_all = Graphed()
    assert rows_of(configs, step_all, runs) == plain and Recorder.captures == 1
    recorder(runs[:2])
    engine.train_epochs(list(zip(configs, runs, strict=True))[:2], EPOCHS - 1, step_all)
    assert Recorder.captures == 1  # counted anew: once for the smaller pack


def test_the_first_steps_are_computed_step_by_step(recorder, monkeypatch):
    config = tiny("kd", batch_size=24)
    runs = [training.make_run(config)]
    recorder(runs)
    calls = []
    monkeypatch.setattr(Recorder, "beside", lambda self: calls.append(1) or nullcontext())
    engine.train_epochs([(config, runs[0])], 0, Graphed())
    assert len(calls) == WARM_UP
