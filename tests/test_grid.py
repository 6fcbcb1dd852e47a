"""Grids: what a file means, what it must not say, and that a sweep makes the same runs as one at a time."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml
from tiny import SMALL, content, made_up, tiny

from iekd import grid, records, training
from iekd.config import ConfigError
from iekd.grid import Outcome
from iekd.store import StoreError


@pytest.fixture
def write(tmp_path):
    """write(text or data) -> the path of a grid file."""

    def write(data) -> Path:
        path = tmp_path / "grid.yaml"
        path.write_bytes(data if isinstance(data, bytes) else yaml.safe_dump(data).encode())
        return path

    return write


# ---------------------------------------------------------------------- reading


def test_lists_multiply():
    assert grid.expand({"method": "ie-ft", "explore": ["l1", "cka"], "seed": [0, 1]}) == [
        {"method": "ie-ft", "explore": explore, "seed": seed} for explore in ("l1", "cka") for seed in (0, 1)
    ]
    assert grid.expand({"method": "kd"}) == [{"method": "kd"}]
    assert grid.expand({"method": []}) == []


def test_a_grid_is_base_and_runs_each_once_and_seed_by_seed(write):
    path = write(
        {"title": "t", "base": {**SMALL, "seed": [0, 1]}, "runs": [{"method": ["supervised", "kd"]}, {"method": "kd", "kd_alpha": 0.9}]}
    )
    configs = grid.read(path)
    assert configs == [tiny(method, seed=seed) for seed in (0, 1) for method in ("supervised", "kd")]


def test_an_entry_overrides_the_base(write):
    (config,) = grid.read(write({"base": {"seed": [0, 1], "method": "kd"}, "runs": [{"seed": 7}]}))
    assert config.seed == 7


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"runs: [", "is not a grid"),
        (b"", "is not a grid"),
        (b"\xff\xfe\x00\x01", "is not a grid"),
        ([1], "is not a grid"),
        ({"run": []}, "is not a grid: it needs a list `runs:`"),
        ({"runs": None}, "is not a grid"),
        ({"runs": {"method": "kd"}}, "is not a grid"),
        ({"runs": ["kd"]}, "is not a grid"),
        ({"bases": {"seed": 1}, "runs": []}, "bases: no such key; the keys of a grid are title, notebook, base, runs"),
        ({"runs": [{}, {"exlore": "cka"}]}, r"run 2: exlore: no such parameter \(did you mean 'explore'\?\)"),
        ({"base": {"preset": "big"}, "runs": [{}]}, "run 1: preset: 'big' is not usable; choose one of smoke, class, paper"),
        ({"runs": [{"method": ["kd", "magic"]}]}, "run 1: method: 'magic' is not usable; choose one of supervised"),
        ({"runs": [{"method": "ie-ft", "explore": None}]}, "run 1: explore: None is not usable; choose one of none, l1"),
        ({"runs": [{True: 1}]}, "run 1: True: no such parameter"),
        ({"runs": [{"method": {"kd": 1}}]}, "run 1: method: .* is not usable"),
        ({"runs": [{"preset": {"smoke": 1}}]}, "run 1: preset: .* is not usable"),
    ],
)  # fmt: skip
def test_a_bad_grid_is_refused_with_file_and_entry(write, data, message):
    path = write(data)
    with pytest.raises(ConfigError, match=message) as error:
        grid.read(path)
    assert str(path) in str(error.value)


def test_a_missing_grid_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="none.yaml: No such file"):
        grid.read(tmp_path / "none.yaml")


def test_parents_come_first_and_once():
    configs = [tiny(method, seed=seed) for seed in (0, 1) for method in ("ie-ft", "ft", "kd")]
    ordered = list(grid.with_parents(configs).values())
    assert len(ordered) == len(set(ordered)) == 6 + 2 * 2
    for place, config in enumerate(ordered):
        assert all(parent in ordered[:place] for parent in config.parents().values())


# ---------------------------------------------------------------------- the order of a sweep, with runs that are made up


@pytest.fixture
def started(monkeypatch):
    """The runs that a sweep starts, in order; a run with weight decay 9 fails."""
    order = []

    def run(config, jobs, children):
        order.append(config)
        assert all(records.find(parent) for parent in config.parents().values()), "started before its parents were done"
        if config.weight_decay == 9:
            return Outcome(config, "failed", "made to fail")
        made_up(config).save()
        return Outcome(config, "done")

    monkeypatch.setattr(grid, "_run_one", run)
    return order


def states(outcomes: list[Outcome]) -> dict[str, str]:
    return {outcome.config.path: outcome.state for outcome in outcomes}


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_failed_run_is_listed_and_stops_only_what_needs_it(started, jobs):
    good, bad = tiny("ie-ft"), tiny("ie-ft", weight_decay=9)  # the teacher of `bad` has it too
    outcomes = grid.sweep([bad, good], jobs)
    assert len(outcomes) == 6 and len(started) == 4
    found = states(outcomes)
    assert found[good.path] == "done" and all(found[c.path] == "done" for c in good.parents().values())
    assert found[bad.path] == "failed" and all(found[c.path] == "failed" for c in bad.parents().values())
    reasons = {outcome.config.path: outcome.reason for outcome in outcomes}
    assert reasons[bad.teacher_run().path] == "made to fail" and reasons[bad.path] == "a parent failed"


def test_a_sweep_goes_on_where_it_was(started):
    configs = [tiny("kd"), tiny("ft")]
    made_up(tiny("kd")).save()
    made_up(tiny("ft").teacher_run()).save()
    found = states(grid.sweep(configs))
    loaded, done = (tiny("kd"), tiny("ft").teacher_run()), (tiny("ft").autoencoder_run(), tiny("ft"))
    assert found == {c.path: "loaded" for c in loaded} | {c.path: "done" for c in done}
    assert set(states(grid.sweep(configs)).values()) == {"loaded"} and len(started) == 2


def test_a_finished_run_needs_no_parents(started):
    made_up(tiny("ie-ft")).save()
    assert states(grid.sweep([tiny("ie-ft")])) == {tiny("ie-ft").path: "loaded"} and not started


def test_an_impossible_pair_costs_nothing(started):
    bad = tiny("ft", teacher="vgg13")
    outcomes = grid.sweep([bad, tiny()])
    assert states(outcomes) == {bad.path: "failed", tiny().path: "done"} and started == [tiny()]
    assert "Choose a pair with the same down-sampling" in outcomes[0].reason


def test_a_corrupt_record_stops_the_sweep_before_anything_runs(started):
    made_up(tiny()).save()
    records.record_path(tiny()).write_text("{")
    with pytest.raises(StoreError, match="is not a valid record"):
        grid.sweep([tiny("kd"), tiny()])
    assert not started


# ---------------------------------------------------------------------- a sweep of real processes


def test_a_sweep_in_two_jobs_makes_the_records_of_single_runs(runs, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)  # one thread for each of the two, as in this process
    wrong = tiny(train_images=5000)  # more than there are: found out by the run itself
    configs = [tiny(), tiny("kd"), wrong]
    outcomes = {outcome.config: outcome for outcome in grid.sweep(configs, jobs=2)}
    assert {config: outcome.state for config, outcome in outcomes.items()} == {
        tiny(): "done", tiny("kd"): "done", tiny("kd").teacher_run(): "done", wrong: "failed",
    }  # fmt: skip
    assert "train_images: 5000 is not usable" in outcomes[wrong].reason
    assert "train_images: 5000" in grid.log_path(wrong).read_text()
    swept = {config: content(records.find(config)) for config in (tiny(), tiny("kd"), tiny("kd").teacher_run())}
    monkeypatch.setenv("IEKD_RUNS", str(tmp_path / "single"))
    for config, found in swept.items():
        assert content(training.train(config, progress=False)) == found


def test_a_run_that_cannot_be_started_is_a_failed_run(runs, monkeypatch):
    runs.mkdir()
    (runs / "cache").write_text("a file where a folder should be")
    (outcome,) = grid.sweep([tiny()])
    assert outcome.state == "failed" and "cannot start" in outcome.reason


def test_a_killed_run_says_so(monkeypatch):
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda words, **how: popen(["/bin/sh", "-c", "kill -9 $$"], **how))
    assert grid.sweep([tiny()]) == [Outcome(tiny(), "failed", "killed by SIGKILL")]
