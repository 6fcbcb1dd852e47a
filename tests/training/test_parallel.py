"""One run on several processes is the run on one. Compared in float64, where both agree to about 1e-12: in float32 the rounding of sums
in another order grows from step to step, in either, as ReLUs change sides."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import content, start, tiny
from torch import nn

from iekd import records
from iekd.cli import main
from iekd.config import RunConfig
from iekd.method.factor import FactorAutoEncoder
from iekd.method.registry import methods
from iekd.records import store
from iekd.training import checkpoint, engine, locks, parallel, runner
from iekd.training.signals import Stopped

CHECKOUT = Path(__file__).resolve().parents[2]
SECONDS = 120  # after which a test gives up its processes
UNEVEN = dict(
    train_images=193, batch_size=63, epochs=1, lr=0.01, schedule="steps"
)  # batches of 63, 63, 63 and 4


def together(task, runs: Path, *arguments: Any, processes: int = 2) -> list[int]:
    """The exit statuses of `task(*arguments)` in processes as torchrun would start them. None of them survives this call."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        start(_one_of, runs, task, rank, processes, port, arguments) for rank in range(processes)
    ]
    end = time.monotonic() + SECONDS
    for process in started:
        process.join(max(0, end - time.monotonic()))
    late = [process for process in started if process.is_alive()]
    for process in late:
        process.kill()
        process.join()
    assert not late, f"{len(late)} of {processes} processes did not end"
    return [process.exitcode for process in started]


def _one_of(task, rank: int, processes: int, port: int, arguments: tuple) -> int | None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    return task(*arguments)


@pytest.fixture(scope="module", autouse=True)
def double():
    """Networks, losses and normalised images in float64, here and in the processes that `in_double` starts."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def close(
    ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], tolerance: float = 1e-8
) -> None:
    """Every tensor within so much of its own greatest value."""
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert (ours[name] - tensor).abs().max() <= tolerance * max(tensor.abs().max(), 1e-3), name


# ---------------------------------------------------------------------- the parts


def parts_are_those_of_the_whole_batch(sizes: list[int]) -> None:
    torch.set_default_dtype(torch.float64)
    with parallel.joined():
        for rows in sizes:
            generator = torch.Generator().manual_seed(rows)
            for shape in ((rows, 3), (rows, 3, 4, 2)):
                gathering(torch.randn(shape, generator=generator))
            batch, towards = (torch.randn(rows, 3, 4, 2, generator=generator) for _ in range(2))
            normalising(batch, towards)


def mine(whole: torch.Tensor) -> torch.Tensor:
    return whole.tensor_split(parallel.count())[parallel.rank()]


def gathering(whole: torch.Tensor) -> None:
    share = mine(whole).clone().requires_grad_()
    gathered = parallel.gather(share, len(whole))
    assert torch.equal(gathered, whole)
    gathered.pow(3).sum().backward()
    torch.testing.assert_close(share.grad, mine(3 * whole.square()))


def normalising(batch: torch.Tensor, towards: torch.Tensor) -> None:
    """Output, statistics and gradients of two steps in training mode, and the output of one in eval mode."""
    plain, split = nn.BatchNorm2d(3, momentum=0.3), nn.BatchNorm2d(3, momentum=0.3)
    for norm in (plain, split):
        norm.load_state_dict(
            norm.state_dict()
            | {"weight": torch.tensor([1.0, 2, -3]), "bias": torch.tensor([0.5, 0, 1])}
        )
    whole, share = batch.clone().requires_grad_(), mine(batch).clone().requires_grad_()
    for _ in range(2):
        expected, found = plain(whole), parallel._normalise(split, share)
        (expected * towards).square().sum().backward()
        (found * mine(towards)).square().sum().backward()
    torch.testing.assert_close(found, mine(expected))
    torch.testing.assert_close(share.grad, mine(whole.grad))
    for parameter in split.parameters():
        torch.distributed.all_reduce(parameter.grad)
    close(
        {n: p.grad for n, p in split.named_parameters()},
        {n: p.grad for n, p in plain.named_parameters()},
        1e-11,
    )
    close(split.state_dict(), plain.state_dict(), 1e-12)
    torch.testing.assert_close(parallel._normalise(split.eval(), share), mine(plain.eval()(whole)))


def test_gathering_and_normalising(runs):
    sizes = [7, 6, 2, 1]  # uneven, even, and with shares that are empty
    assert together(parts_are_those_of_the_whole_batch, runs, sizes, processes=3) == [0, 0, 0]


# ---------------------------------------------------------------------- steps


def untrained(config: RunConfig) -> dict[str, nn.Module]:
    torch.manual_seed(7)
    teacher = engine.build_network(config.teacher, config).eval() if config.has_teacher else None
    autoencoder = (
        FactorAutoEncoder(teacher.feature_channels, config.factor_ratio, config.decoder).eval()
        if teacher
        else None
    )
    return {
        role: {"teacher": teacher, "autoencoder": autoencoder}[role] for role in config.parents()
    }


def after_an_epoch(config: RunConfig) -> dict[str, torch.Tensor]:
    """Weights, statistics, momentum, loss terms and validation errors."""
    run = engine.make_run(config, untrained(config), torch.device("cpu"))
    parallel.spread(run)
    rows = {}
    for epoch in range(config.epochs):
        rows |= {
            f"{name} {epoch}": value
            for name, value in engine.train_epoch(config, run, epoch).items()
        }
    rows |= engine.evaluate(run, "validation")
    return checkpoint.state(run) | {name: torch.tensor(value) for name, value in rows.items()}


def all_configs() -> list[RunConfig]:
    staged = dict(init_epochs=1, epochs=2)
    every = [
        tiny(name, **UNEVEN | (staged if name in ("fitnet", "ab") else {})) for name in methods()
    ]
    return [
        *every,
        tiny("ie-ft", explore="cka", inherit="partial-l2", **UNEVEN),
        tiny("kd", **UNEVEN | dict(momentum=0, views=2)),
    ]


def note_an_epoch_of(configs: list[RunConfig], folder: Path) -> None:
    torch.set_default_dtype(torch.float64)
    with parallel.joined():
        for number, config in enumerate(configs):
            torch.save(after_an_epoch(config), folder / f"{number}-{parallel.rank()}")


def test_every_method_makes_the_steps_of_one_process(runs, tmp_path):
    configs = all_configs()
    assert together(note_an_epoch_of, runs, configs, tmp_path) == [0, 0]
    for number, config in enumerate(configs):
        first, second = (
            torch.load(tmp_path / f"{number}-{rank}", weights_only=True) for rank in (0, 1)
        )
        close(first, second, 0)
        close(first, after_an_epoch(config))


def note_an_epoch_in_bf16(config: RunConfig, folder: Path) -> None:
    with parallel.joined():
        torch.save(after_an_epoch(config), folder / f"{parallel.rank()}")


def test_bfloat16(runs, tmp_path):
    """Both round to eight bits, in another order: the losses of the first epoch agree to a few of these roundings."""
    config = tiny("kd", precision="bf16", **UNEVEN)
    assert together(note_an_epoch_in_bf16, runs, config, tmp_path) == [0, 0]
    first, second = (torch.load(tmp_path / rank, weights_only=True) for rank in "01")
    close(first, second, 0)
    torch.set_default_dtype(torch.float32)
    alone = after_an_epoch(config)
    torch.set_default_dtype(torch.float64)
    close({"loss 0": first["loss 0"]}, {"loss 0": alone["loss 0"]}, 0.02)
    assert all(tensor.dtype == alone[name].dtype for name, tensor in first.items())


# ---------------------------------------------------------------------- runs


def train_all(configs: list[RunConfig]) -> None:
    torch.set_default_dtype(torch.float64)
    with parallel.joined():
        for config in configs:
            runner.train(config, progress=False)


def same(ours: records.Record, theirs: records.Record) -> None:
    """Two records of one run, but for the machine and rounding."""
    one, two = content(ours), content(theirs)
    for name in ("weights", "parents", "device"):
        del one[name], two[name]
    assert one.pop("history").keys() == two.pop("history").keys()
    for name, curve in theirs.history.items():
        assert known(ours.history[name]) == pytest.approx(known(curve), rel=1e-6), name
    for rule, metric in ((rule, metric) for rule, metric in theirs.metrics.items() if metric):
        assert known(ours.metrics[rule].model_dump().values()) == pytest.approx(
            known(metric.model_dump().values()), rel=1e-6
        ), rule
    assert one | {"metrics": 0} == two | {"metrics": 0}


def known(values: Iterable[float | None]) -> list[float]:
    """`approx` knows no None."""
    return [-1 if value is None else value for value in values]


def test_runs_with_their_parents_leave_the_same_records(runs, tmp_path, monkeypatch):
    configs = [tiny("ie-ft", augment="standard"), tiny("kd", views=2), tiny("ie-dml")]
    assert together(train_all, runs, configs) == [0, 0]
    two = {
        record.config.path: record
        for record in map(records.read, records.files(store.records_folder()))
    }
    assert (
        len(two) == 3 + 2 + 2
    )  # with teachers, an auto-encoder, and the second view of a mutual training
    assert all(record.device["processes"] == 2 for record in two.values())
    assert not list(runs.rglob("*.checkpoint.safetensors"))
    runner.load_run(configs[0])  # weights as of one process
    monkeypatch.setenv("IEKD_RUNS", str(tmp_path / "alone"))
    for config in configs:
        runner.train(config, progress=False)
    for record in map(records.read, records.files(store.records_folder())):
        assert "processes" not in record.device
        same(two[record.config.path], record)


def train_until(config: RunConfig, epoch: int, rank: int) -> int | None:
    """A SIGTERM comes to one of the processes within this epoch (from 0); all end with its status."""
    torch.set_default_dtype(torch.float64)
    train_epochs = engine.train_epochs

    def interrupted(members, at, step_all):
        if at == epoch and parallel.rank() == rank and members[0][0] == config:
            signal.raise_signal(signal.SIGTERM)
        return train_epochs(members, at, step_all)

    engine.train_epochs = interrupted
    try:
        with main.stopping.on_signals(), parallel.joined():
            runner.train(config, progress=False)
    except Stopped as stopped:
        return stopped.status


def test_a_run_goes_on_in_another_number_of_processes(runs, tmp_path, monkeypatch):
    config = tiny("kd", epochs=5)
    path = store.cache_folder() / f"{config.path}.checkpoint.safetensors"
    assert together(train_until, runs, config, 1, 1) == [
        143,
        143,
    ]  # two processes, the second hears the signal
    assert len(json.loads(store.load_tensors(path)[1]["history"])) == 2
    assert together(train_until, runs, config, 3, 0, processes=1) == [143]  # one process
    assert len(json.loads(store.load_tensors(path)[1]["history"])) == 4
    assert together(train_all, runs, [config]) == [0, 0]
    record = records.find(config)
    monkeypatch.setenv("IEKD_RUNS", str(tmp_path / "calm"))
    same(record, runner.train(config, progress=False))


# ---------------------------------------------------------------------- failures


def run_command(said: Path, *words: str) -> int:
    with (said / os.environ["RANK"]).open("w") as file, redirect_stderr(file):
        return main.main(["run", *words])


def test_a_run_that_fails_ends_everywhere_with_the_reason(runs, tmp_path):
    config = tiny(lr=1e20)
    assert together(run_command, runs, tmp_path, *config.command().split()[2:]) == [1, 1]
    assert all("Nothing was recorded" in (tmp_path / rank).read_text() for rank in "01")
    assert records.find(config) is None


def test_a_run_that_another_job_trains_is_left_to_it(runs, tmp_path):
    config = tiny()
    with locks.claim(config):
        assert together(
            run_command, runs, tmp_path, *config.command().split()[2:], "--no-wait"
        ) == [75, 75]
    assert all(locks.BUSY in (tmp_path / rank).read_text() for rank in "01")


def hold(config: RunConfig, seconds: float, held: Path) -> None:
    with locks.claim(config):
        held.touch()
        time.sleep(seconds)


def train_impatiently(config: RunConfig) -> None:
    locks.LOOK_AGAIN_SECONDS = 0.1
    train_all([config])


def test_a_run_that_another_job_trains_is_waited_for(runs, tmp_path):
    config, held = tiny(), tmp_path / "held"
    other = start(hold, runs, config, 4, held)
    while not held.exists():
        time.sleep(0.01)
    assert together(train_impatiently, runs, config) == [0, 0]
    assert not other.is_alive() and records.find(config)


def break_in_the_second() -> None:
    step = engine.step

    def broken(*arguments):
        if parallel.rank() == 1:
            raise MemoryError("no memory left here")
        return step(*arguments)

    engine.step = broken
    train_all([tiny()])


def test_nobody_waits_for_a_process_that_is_gone(runs):
    before = time.monotonic()
    assert together(break_in_the_second, runs) == [1, 1]
    assert time.monotonic() - before < SECONDS / 2


@pytest.mark.parametrize("words", [["sweep", "grid.yaml"], ["pack", "iekd run"], ["doctor"]])
def test_other_commands_are_refused(monkeypatch, capsys, words):
    for name, value in dict(RANK=0, LOCAL_RANK=0, WORLD_SIZE=2).items():
        monkeypatch.setenv(name, str(value))
    assert main.main(words) == 1
    assert "torchrun is for iekd run" in capsys.readouterr().err


# ---------------------------------------------------------------------- torchrun itself


def test_torchrun(runs, monkeypatch):
    """In float32, as people run it: the first epoch to a thousandth, the error at the end within three points (16 of 597 images)."""
    torch.set_default_dtype(torch.float32)
    config = RunConfig.create("smoke", method="supervised", teacher="none", seed=3, epochs=4)
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "iekd",
    ]
    process = subprocess.run(
        [*torchrun, *config.command().split()[1:]],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        timeout=SECONDS,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.returncode == 0, process.stdout
    assert process.stdout.count("test error") == 3  # said once
    two = records.find(config)
    one = runner.train(config, progress=False, again=True)
    torch.set_default_dtype(torch.float64)
    assert two.device["processes"] == 2
    assert two.history["loss"][0] == pytest.approx(one.history["loss"][0], rel=1e-3)
    assert two.metrics["last"].test_error == pytest.approx(one.metrics["last"].test_error, abs=3)
