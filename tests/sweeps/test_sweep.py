"""Sweeps: the order of runs, failures, time limits, signals, and two sweeps on one store."""

import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from tiny import SMALL, content, made_up, start, tiny

from iekd import records
from iekd.config import RunConfig, grid
from iekd.errors import DataError
from iekd.records import store
from iekd.sweeps import cost, process, sweep
from iekd.sweeps.process import Outcome
from iekd.training import checkpoint, locks, runner


def states(outcomes: list[Outcome]) -> dict[str, str]:
    return {outcome.config.path: outcome.state for outcome in outcomes}


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(sweep, "POLL_SECONDS", 0.005)
    monkeypatch.setattr(sweep, "LOOK_AGAIN_SECONDS", 0.05)


# ---------------------------------------------------------------------- order


def test_the_longest_chain_of_a_seed_comes_first_and_parents_before_children():
    configs = [tiny(method, seed=seed) for seed in (0, 1) for method in ("supervised", "ie-ft")]
    ordered = cost.in_order([configs], grid.with_parents(configs))
    last, first = SMALL["student"], SMALL["teacher"]
    one_seed = [("supervised", first), ("factor-ae", "none"), ("ie-ft", last), ("supervised", last)]
    assert [(c.method, c.student, c.seed) for c in ordered] == [
        (*run, seed) for seed in (0, 1) for run in one_seed
    ]


def test_a_parent_belongs_to_the_seed_that_needs_it_first():
    first, later = (
        tiny("kd", seed=1, teachers=2),
        tiny("kd", seed=2, teachers=2),
    )  # of teacher 1, of teacher 0
    assert cost.in_order([[later, first]], grid.with_parents([later, first])) == [
        first.teacher_run(),
        first,
        later.teacher_run(),
        later,
    ]


def test_a_parent_whose_runs_are_all_finished_has_its_place_too():
    config = tiny("kd")
    assert cost.in_order([[]], {config.teacher_run().path: config.teacher_run()}) == [
        config.teacher_run()
    ]


def test_a_grid_has_precedence_over_the_next_and_lends_it_what_both_need():
    first, second, alone = tiny("kd", seed=5), tiny("ft", seed=0), tiny(seed=9)
    grids = [[first], [second, alone, alone.replace(seed=3), first.teacher_run()]]
    assert first.teacher_run() == second.teacher_run()
    ordered = cost.in_order(
        grids, grid.with_parents([config for configs in grids for config in configs])
    )
    later = [second.autoencoder_run(), second, alone.replace(seed=3), alone]
    assert ordered == [first.teacher_run(), first, *later]


# ---------------------------------------------------------------------- runs that are made up


class Ended:
    """A process that has ended."""

    def __init__(self, code: int):
        self.returncode = code

    def poll(self) -> int:
        return self.returncode


@pytest.fixture
def started(monkeypatch):
    """The runs that a sweep starts, in order; a run with weight decay 9 fails."""
    order = []

    def run(configs: list[RunConfig], *_) -> process.Child:
        (config,) = configs
        order.append(config)
        assert all(records.find(parent) for parent in config.parents().values()), (
            "started before its parents were done"
        )
        process.log_path(config).parent.mkdir(parents=True, exist_ok=True)
        process.log_path(config).write_text("some words\nmade to fail\n")
        if config.weight_decay != 9:
            made_up(config).save()
        return process.Child([config], Ended(config.weight_decay == 9), time.monotonic(), 0)

    monkeypatch.setattr(process, "start", run)
    return order


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_failed_run_is_listed_and_stops_only_what_needs_it(started, jobs):
    good, bad = tiny("ie-ft"), tiny("ie-ft", weight_decay=9)  # the teacher of `bad` has it too
    outcomes = sweep.sweep([bad, good], jobs=jobs)
    assert len(outcomes) == 6 and len(started) == 4
    found = states(outcomes)
    assert found[good.path] == "done" and all(
        found[c.path] == "done" for c in good.parents().values()
    )
    assert found[bad.path] == "failed" and all(
        found[c.path] == "failed" for c in bad.parents().values()
    )
    reasons = {outcome.config.path: outcome.reason for outcome in outcomes}
    assert (
        reasons[bad.teacher_run().path] == "made to fail" and reasons[bad.path] == "a parent failed"
    )


def test_a_sweep_goes_on_where_it_was(started):
    configs = [tiny("kd"), tiny("ft")]
    made_up(tiny("kd")).save()
    made_up(tiny("ft").teacher_run()).save()
    found = states(sweep.sweep(configs))
    loaded, done = (
        (tiny("kd"), tiny("ft").teacher_run()),
        (tiny("ft").autoencoder_run(), tiny("ft")),
    )
    assert found == {c.path: "loaded" for c in loaded} | {c.path: "done" for c in done}
    assert set(states(sweep.sweep(configs)).values()) == {"loaded"} and len(started) == 2


@pytest.mark.parametrize("method", ["kd", "ft", "ie-ft", "crd", "ie-at", "vid", "dml", "ie-dml"])
def test_whatever_record_of_a_finished_grid_is_gone_is_made_again(started, method):
    """The message about a damaged one asks to delete it, for "the run that made it will make it
    again".
    """
    first = tiny(method)
    family = grid.with_parents([first.partner() if first.is_mutual else first])
    for gone in family.values():
        for config in family.values():
            made_up(config).save()
        records.record_path(gone).unlink()
        started.clear()
        found = states(sweep.sweep([first]))
        assert started == [gone] and records.find(gone) and found[gone.path] == "done"
        assert set(found.values()) == {"done", "loaded"} or found == {gone.path: "done"}
        assert states(sweep.sweep([first])) == {
            p: "loaded" for p in family if first.partner().path != p or not first.is_mutual
        }


def test_an_impossible_pair_costs_nothing(started):
    bad = tiny("ft", teacher="vgg13")
    outcomes = sweep.sweep([bad, tiny()])
    assert states(outcomes) == {bad.path: "failed", tiny().path: "done"} and started == [tiny()]
    assert "Choose a pair with the same down-sampling" in outcomes[0].reason


def test_a_data_set_that_cannot_be_had_is_looked_for_once(started, monkeypatch):
    asked = []

    def load_raw(name, size):
        asked.append(name)
        raise (DataError("cifar10: not in this room") if name == "cifar10" else AssertionError)

    monkeypatch.setattr(sweep.data, "load_raw", load_raw)
    outcomes = sweep.sweep([RunConfig.create("class", method="kd", seed=seed) for seed in (0, 1)])
    assert (
        {o.reason for o in outcomes} == {"cifar10: not in this room"}
        and asked == ["cifar10"]
        and not started
    )


BAD = {
    "a damaged record": lambda bad: store.write_atomic(records.record_path(bad), b"{"),
    "an empty record": lambda bad: store.write_atomic(records.record_path(bad), b""),
    "a record that is a folder": lambda bad: records.record_path(bad).mkdir(parents=True),
    "another run's record": lambda bad: (
        made_up(tiny("at")).save()
        or records.record_path(tiny("at")).rename(records.record_path(bad))
    ),
    "a folder that is a file": lambda bad: store.write_atomic(records.record_path(bad).parent, b""),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_run_whose_record_is_none_is_listed_as_failed_and_the_others_run(started, kind):
    bad = tiny("kd", seed=1)
    records.record_path(bad).parent.parent.mkdir(parents=True)
    if "folder" not in kind:
        records.record_path(bad).parent.mkdir()
    BAD[kind](bad)
    found = {outcome.config.path: outcome for outcome in sweep.sweep([bad, tiny("crd"), tiny()])}
    assert (
        found[bad.path].state == "failed"
        and str(records.record_path(bad).parent) in found[bad.path].reason
    )
    assert found[tiny("crd").path].state == found[tiny().path].state == "done"


def test_a_teacher_whose_record_is_damaged_fails_with_those_that_wait_for_it(started):
    store.write_atomic(records.record_path(tiny("kd").teacher_run()), b"{")
    made_up(tiny("kd")).save()
    found = states(sweep.sweep([tiny("kd"), tiny("kd", epochs=4), tiny()]))
    assert found == {
        tiny("kd").path: "loaded",
        tiny("kd").teacher_run().path: "failed",
        tiny("kd", epochs=4).path: "failed",
        tiny().path: "done",
    }


IMPOSSIBLE = {
    "vgg13 at 8 pixels": dict(student="vgg13", train_images=65, batch_size=64),
    "mobilenet at 8 pixels": dict(student="mobilenetv2x0.5", train_images=129, batch_size=128),
    "its teacher": dict(method="kd", teacher="vgg13", train_images=65, batch_size=64),
    "its peer": dict(method="dml", teacher="vgg13", train_images=65, batch_size=64),
    "one image a batch": dict(student="vgg13", batch_size=1),
    "a network beyond all memory": dict(student="wrn10_9999999999999"),
    "views beyond the limit": dict(method="at", views=10**9, augment="standard"),
    "a folder name beyond the limit": dict(student="wrn10_" + "1" * 300),
    "more images than there are": dict(method="at", views=1, train_images=10**9),
}


@pytest.mark.parametrize("kind", IMPOSSIBLE)
def test_whatever_one_run_does_wrong_while_it_is_planned_the_others_run(started, kind):
    bad, good = tiny(**IMPOSSIBLE[kind]), tiny("kd", seed=1)
    found = {outcome.config.path: outcome for outcome in sweep.sweep([bad, good])}
    assert found[bad.path].state == "failed" and found[bad.path].reason
    assert found[good.path].state == "done" and bad not in started


@pytest.mark.parametrize(
    "error", [RuntimeError, ValueError, KeyError, OSError, ZeroDivisionError, RecursionError]
)
@pytest.mark.parametrize("step", ["cost", "data", "pair"])
def test_whatever_goes_wrong_while_a_run_is_planned_is_its_own_fault(
    started, monkeypatch, step, error
):
    bad = RunConfig.create("smoke", dataset="fashion-mnist") if step == "data" else tiny(epochs=7)
    owner, name = {
        "cost": (cost, "cost"),
        "data": (sweep.data, "load_raw"),
        "pair": (runner, "check_pair"),
    }[step]
    real = getattr(owner, name)

    def fail(what, **more):
        if what in (bad, "fashion-mnist"):
            raise error("of a kind that nobody thought of")
        return real(what, **more)

    monkeypatch.setattr(owner, name, fail)
    outcomes = {outcome.config: outcome for outcome in sweep.sweep([bad, tiny()])}
    assert outcomes[tiny()].state == "done" and outcomes[bad].state == "failed"
    assert (
        outcomes[bad].reason.startswith(error.__name__)
        and "nobody thought of" in outcomes[bad].reason
    )


@pytest.mark.parametrize(
    ("network", "side"),
    [("vgg13", 8), ("vgg13", 15), ("mobilenetv2x0.5", 8), ("mobilenetv2x0.5", 16), ("resnet8", 8)],
)
def test_the_cost_of_every_network_can_be_told_at_every_size(network, side):
    assert cost.flops(network, "cifar10", side) > 0


def test_at_the_time_limit_the_rest_is_pending(started, monkeypatch):
    assert (
        set(states(sweep.sweep([tiny("kd")], time_limit=0)).values()) == {"pending"} and not started
    )


@pytest.mark.parametrize(
    ("code", "state", "reason"),
    [
        (128 + signal.SIGTERM, "stopped", "before its first checkpoint"),
        (-signal.SIGTERM, "stopped", "before its first checkpoint"),  # before Python was ready
        (-signal.SIGKILL, "failed", "killed by SIGKILL"),
        (3, "failed", "the last line"),
    ],
)
def test_what_an_exit_status_means(monkeypatch, code, state, reason):
    process.log_path(tiny()).parent.mkdir(parents=True)
    process.log_path(tiny()).write_text("of an earlier sweep\nwords\nthe last line\n")
    said = len("of an earlier sweep\n")
    monkeypatch.setattr(
        process, "start", lambda config, *_: process.Child(config, Ended(code), 0, said)
    )
    assert sweep.sweep([tiny()]) == [Outcome(tiny(), state, reason)]


def test_what_was_stopped_says_whether_it_has_a_checkpoint(monkeypatch):
    store.write_atomic(checkpoint.path_of(tiny()), b"")
    monkeypatch.setattr(
        process, "start", lambda config, *_: process.Child(config, Ended(143), 0, 0)
    )
    assert sweep.sweep([tiny()]) == [Outcome(tiny(), "stopped", "continues from its checkpoint")]


def test_in_the_log_of_a_pack_seed_1_is_not_seed_10():
    one, ten = tiny(seed=1), tiny(seed=10)
    process.log_path(one).parent.mkdir(parents=True)
    process.log_path(one).write_text(
        f"iekd: {one.path}: lower lr\niekd: {ten.path}: {locks.BUSY}\n"
    )
    child = process.Child([one, ten], Ended(1), 0, 0)
    assert (
        child.outcome(one) == Outcome(one, "failed", f"iekd: {one.path}: lower lr")
        and child.outcome(ten) is None
    )


def test_the_bar_counts_epochs_under_way_and_not_those_of_checkpoints_as_time():
    one, two, three = (tiny(seed=seed) for seed in (1, 2, 3))
    work = sweep.Sweep([[one, two, three]], 1, 1)
    each = cost.cost(one)
    work.running = [
        process.Child([one], Ended(None), time.monotonic(), len("10/10 [of old, epoch"))
    ]
    work.jobs[one.path].running = True
    process.log_path(one).parent.mkdir(parents=True)
    bars = "\r".join(
        f"seed 1: 40%|####      | {done}/10 [00:34<08:08, 11.62s/epoch, img/s=633]"
        for done in (4, 5, 7)
    )
    process.log_path(one).write_text(
        "10/10 [of old, epoch" + bars + "\r views: 3/4 [00:01<00:01, 1 image/s]"
    )
    work.show(now=True)
    assert (work.bar.initial, work.bar.n, work.bar.total) == pytest.approx(
        (0.4 * each, 0.7 * each, 3 * each)
    )
    work.running = [work.running[0]._replace(process=Ended(0))]
    work.collect()
    assert (work.bar.initial, work.bar.n) == pytest.approx((0.4 * each, each))
    process.log_path(one).unlink()
    work.show(now=True)


def test_what_another_process_claimed_in_between_is_tried_again(monkeypatch):
    codes = iter([75, 75, 0])
    monkeypatch.setattr(
        process,
        "start",
        lambda config, *_: process.Child(config, Ended(next(codes)), time.monotonic(), 0),
    )
    assert sweep.sweep([tiny()]) == [Outcome(tiny(), "done", "0 s")]


def hold(config: RunConfig, seconds: float, finish: bool) -> int:
    with locks.claim(config):
        store.write_atomic(store.cache_folder() / "held", b"")
        time.sleep(seconds)
        if finish:
            made_up(config).save()
    return 0


@pytest.mark.parametrize("finish", [True, False])
def test_a_run_of_another_process_blocks_no_slot_and_is_taken_over_if_that_dies(
    started, runs, finish
):
    other = start(hold, runs, tiny(), 1.0, finish)
    while not (runs / "cache" / "held").exists():
        time.sleep(0.01)
    outcomes = sweep.sweep([tiny(), tiny(seed=1)])
    other.join(60)
    assert started == [tiny(seed=1)] + [tiny()] * (not finish)
    assert states(outcomes) == {
        tiny().path: "loaded" if finish else "done",
        tiny(seed=1).path: "done",
    }


# ---------------------------------------------------------------------- threads


@pytest.mark.parametrize(
    ("wish", "jobs", "threads"), [(None, 1, "6"), (None, 4, "1"), (None, 9, "1"), ("3", 2, "3")]
)
def test_the_cores_that_may_be_used_are_shared_out_unless_the_user_says_otherwise(
    runs, monkeypatch, wish, jobs, threads
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.delenv("OMP_NUM_THREADS")
    if wish:
        monkeypatch.setenv("OMP_NUM_THREADS", wish)
    seen = {}
    monkeypatch.setattr(subprocess, "Popen", lambda words, **how: seen.update(how) or Ended(0))
    process.start([tiny()], jobs)
    assert seen["env"]["OMP_NUM_THREADS"] == threads


# ---------------------------------------------------------------------- real processes


def test_a_sweep_in_two_jobs_makes_the_records_of_single_runs(runs, monkeypatch, tmp_path):
    wrong = tiny(train_images=5000)  # more than there are: found out by the run itself
    configs = [tiny(), tiny("kd"), wrong]
    outcomes = {outcome.config: outcome for outcome in sweep.sweep(configs, jobs=2)}
    assert {config: outcome.state for config, outcome in outcomes.items()} == {
        tiny(): "done",
        tiny("kd"): "done",
        tiny("kd").teacher_run(): "done",
        wrong: "failed",
    }
    assert "train_images: 5000 is not usable" in outcomes[wrong].reason
    assert "train_images: 5000" in process.log_path(wrong).read_text()
    swept = {
        config: content(records.find(config))
        for config in (tiny(), tiny("kd"), tiny("kd").teacher_run())
    }
    monkeypatch.setenv("IEKD_RUNS", str(tmp_path / "single"))
    for config, found in swept.items():
        assert content(runner.train(config, progress=False)) == found


def test_a_run_that_cannot_be_started_is_a_failed_run(runs, monkeypatch):
    runs.mkdir()
    (runs / "cache").write_text("a file where a folder should be")
    (outcome,) = sweep.sweep([tiny()])
    assert outcome.state == "failed" and "cannot start" in outcome.reason


@pytest.mark.parametrize("gone", ["teacher", "autoencoder"])
def test_a_parent_made_again_comes_out_the_same_or_it_is_said(runs, gone):
    child = tiny("ft")
    runner.train(child, progress=False)
    config = child.parents()[gone]
    before = content(records.find(config))
    records.record_path(config).unlink()
    found = states(sweep.sweep([child]))
    assert (
        found[config.path] == "done"
        and set(found.values()) == {"done", "loaded"}
        and content(records.find(config)) == before
    )
    learned = records.find(child)
    records.record_path(config).unlink()
    changed = learned.model_copy(
        update={"parents": {**learned.parents, gone: "0" * 64}}
    )  # as if another machine had made it
    changed.save()
    found = {outcome.config.path: outcome for outcome in sweep.sweep([child])}
    assert (
        found[config.path].state == "failed"
        and "1 finished runs learned from its lost weights" in found[config.path].reason
    )
    assert not records.find(config) and records.find(child) == changed


def test_a_file_of_the_working_folder_does_not_shadow_a_library(runs, tmp_path, monkeypatch):
    for name in ("random.py", "torch.py", "iekd.py", "typing.py", "json.py", "signal.py"):
        (tmp_path / name).write_text("raise SystemExit('not meant')")
    monkeypatch.chdir(tmp_path)
    assert [outcome.state for outcome in sweep.sweep([tiny(epochs=1)])] == ["done"]


LONG = {**SMALL, "epochs": 3000}  # a minute if nobody stops it


def sweep_process(tmp_path, *options: str) -> subprocess.Popen:
    file = tmp_path / "grid.yaml"
    read = {name: value for name, value in LONG.items() if name not in tiny().unread()}
    file.write_text(
        yaml.safe_dump({"base": read, "runs": [{"method": "supervised", "seed": [0, 1, 2]}]})
    )
    words = [sys.executable, "-m", "iekd", "sweep", str(file), "--jobs", "2", *options]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(pattern: str, folder, count: int = 1) -> list:
    deadline = time.monotonic() + 120
    while len(found := list(folder.rglob(pattern))) < count:
        assert time.monotonic() < deadline, f"no {pattern}"
        time.sleep(0.05)
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_sweep_that_is_asked_to_stop_takes_its_children_along_and_keeps_what_they_did(
    runs, tmp_path, number
):
    running = sweep_process(tmp_path)
    wait_for("*.checkpoint.safetensors", runs, count=2)
    running.send_signal(number)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 128 + number
    assert (
        err.strip().splitlines()[-1]
        == f"iekd: stopped by {number.name}; the same command continues from the last checkpoint"
    )
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["stopped", "stopped", "pending"] and lines[
        -1
    ].startswith("3 runs, 0 failed, 3 unfinished")
    for seed in (0, 1):
        config = tiny(**LONG, seed=seed)
        with locks.claim(config, wait=False):
            pass  # nobody is left
        assert "the same command continues" in process.log_path(config).read_text().splitlines()[-1]


def test_runs_are_analysed_while_their_weights_are_there(runs):
    """In packs and alone; parents are not asked for, so they are not measured."""
    configs = [tiny("ft"), tiny("ie-ft"), tiny("kd")]
    outcomes = sweep.sweep(configs, jobs=1, pack=2, analyse=True)
    assert all(outcome.finished for outcome in outcomes)
    measured = {path.name for path in (runs / "records").rglob("*.analysis.json")}
    found = [config for config in configs if records.analysis_path(config).exists()]
    assert found == configs and measured == {"seed0.analysis.json"}
    assert not records.analysis_path(configs[0].teacher_run()).exists()
