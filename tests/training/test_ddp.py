"""One run on several processes: with frozen batch statistics it is the run on one, and whatever
happens, one record.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import redirect_stderr
from pathlib import Path

import pytest
import torch
from tiny import content, start, tiny
from torch import nn

from iekd import records
from iekd.cli import main
from iekd.config import RunConfig
from iekd.config.known import methods
from iekd.errors import ConfigError
from iekd.method.factor import FactorAutoEncoder
from iekd.records import store
from iekd.training import checkpoint, checks, ddp, locks, loop, member, runner
from iekd.training.run import Run, build_network, build_run
from iekd.training.signals import Stopped

CHECKOUT = Path(__file__).resolve().parents[2]
SECONDS = 120  # after which a test gives up its processes
# batches of 63, 63, 63 and 4 images: shards of 32 and 31, and of 2
UNEVEN = dict(train_images=193, batch_size=63, epochs=2, lr=1e-4, schedule="steps")
WHOLE = ["sp", "cc", "rkd", "pkt", "crd", "ie-od", "dml", "ie-dml"]
SHARDED = [name for name in methods() if name not in WHOLE]


def together(task, runs: Path, *arguments, processes: int = 2) -> list[int]:
    """The exit statuses of `task(*arguments)` in processes as torchrun would start them. None
    survives this call.
    """
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


# ---------------------------------------------------------------------- steps


def untrained(config: RunConfig) -> dict[str, nn.Module]:
    torch.manual_seed(7)
    if not config.has_teacher:
        return {}
    teacher = build_network(config.teacher, config).eval()
    factor = FactorAutoEncoder(teacher.feature_channels, config.factor_ratio, config.decoder)
    parents = {"teacher": teacher, "autoencoder": factor.eval()}
    return {role: parents[role] for role in config.parents()}


def fresh(config: RunConfig) -> Run:
    return build_run(config, untrained(config), torch.device("cpu"))


def freeze_statistics(patch) -> None:
    """From now on batch normalisation takes its running statistics in training, too."""
    begin = loop.begin

    def frozen(run: Run, epoch: int) -> None:
        begin(run, epoch)
        for module in run.learner.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()

    patch(loop, "begin", frozen)


def after(config: RunConfig, run: Run, rows: list[dict]) -> dict[str, torch.Tensor]:
    """Weights, statistics, momentum and history."""
    history = {f"{name} {i}": value for i, row in enumerate(rows) for name, value in row.items()}
    return checkpoint.state(run) | {name: torch.tensor(value) for name, value in history.items()}


def note_runs(configs: list[RunConfig], folder: Path, frozen: bool) -> None:
    """Train each run, and save what each process has in the end."""
    if frozen:
        torch.set_default_dtype(torch.float64)
        freeze_statistics(setattr)
    with ddp.joined() as first:
        if not first:
            made = []
            ddp.follow(lambda config: made.append(fresh(config)) or made[-1])
            for number, run in enumerate(made):
                torch.save(after(configs[number], run, []), folder / f"{number}-1")
            return
        for number, config in enumerate(configs):
            trainer = ddp.Trainer(config, fresh(config))
            rows = [trainer.train_epoch(epoch) for epoch in range(config.epochs)]
            torch.save(after(config, trainer.run, rows), folder / f"{number}-0")


def load(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


def configs_of() -> list[RunConfig]:
    configs = []
    for name in SHARDED:
        staged = {"init_epochs": 1} if name in ("fitnet", "ab") else {}
        configs.append(tiny(name, augment="standard", **UNEVEN, **staged))
    return [
        *configs,
        tiny("ie-ft", explore="orthogonal", inherit="cosine", **UNEVEN),
        tiny("kd", momentum=0, **UNEVEN),
    ]


def test_with_frozen_statistics_two_processes_are_one_up_to_rounding(runs, tmp_path, monkeypatch):
    configs = configs_of()
    assert together(note_runs, runs, configs, tmp_path, True) == [0, 0]
    torch.set_default_dtype(torch.float64)
    try:
        freeze_statistics(monkeypatch.setattr)
        for number, config in enumerate(configs):
            run = fresh(config)
            rows = [loop.train_epoch(config, run, epoch) for epoch in range(config.epochs)]
            found = load(tmp_path / f"{number}-0")
            for name, expected in after(config, run, rows).items():
                scale = max(expected.abs().max().item(), 1e-3)
                gap = (found[name] - expected).abs().max().item()
                # errors are counted in float32
                allowed = 1e-6 if name.startswith("train_error") else 1e-8
                assert gap <= allowed * scale, (
                    f"{config.method}: {name} differs by {gap:g} of {scale:g}"
                )
    finally:
        torch.set_default_dtype(torch.float32)


def test_with_statistics_of_their_own_all_processes_end_with_the_same_weights(runs, tmp_path):
    configs = [*configs_of(), tiny("kd", precision="bf16", **UNEVEN)]
    assert together(note_runs, runs, configs, tmp_path, False) == [0, 0]
    for number, config in enumerate(configs):
        first, second = (load(tmp_path / f"{number}-{rank}") for rank in (0, 1))
        weights = [name for name, _ in fresh(config).learner.named_parameters()]
        assert all(torch.equal(first[name], second[name]) for name in weights), config
        start = fresh(config).learner.state_dict()
        assert any(not torch.equal(first[name], start[name]) for name in weights)


# ---------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    "fields",
    [
        *(dict(method=name) for name in WHOLE),
        *(dict(method="ie-ft", explore=m) for m in ("cka", "centred-l1", "l2", "partial-l2")),
        dict(method="ie-ft", inherit="l2"),
        dict(method="ie-ft", explore_target="shuffled"),
    ],
)
def test_what_needs_a_whole_batch_is_refused(fields):
    with pytest.raises(ConfigError, match="several processes cannot train this.*without torchrun"):
        checks.check_shards(tiny(**fields), 2)


@pytest.mark.parametrize("method", SHARDED)
def test_what_is_a_mean_over_images_is_not_refused(method):
    checks.check_shards(tiny(method, **UNEVEN, init_epochs=1), 2)


def test_a_last_batch_that_leaves_a_process_one_image_is_refused():
    checks.check_shards(tiny(train_images=132, batch_size=64), 2)
    with pytest.raises(ConfigError, match="batch_size: 64 leaves a process 1 images"):
        checks.check_shards(tiny(train_images=131, batch_size=64), 2)


def test_it_is_refused_before_anything_trains(runs, tmp_path):
    words = tiny("sp").command().split()[2:]
    assert together(run_command, runs, tmp_path, *words) == [1, 0]
    assert "several processes cannot train this" in (tmp_path / "0").read_text()
    assert not records.files(runs / "records")


# ---------------------------------------------------------------------- runs


def train_until(config: RunConfig, epoch: int, number: int) -> int | None:
    """A signal comes to the first process within this epoch (from 0)."""
    member.CHECKPOINT_SECONDS = -1
    train_epoch = ddp.Trainer.train_epoch

    def interrupted(self, at):
        if at == epoch and self.leads and self.config == config:
            signal.raise_signal(number)
        return train_epoch(self, at)

    ddp.Trainer.train_epoch = interrupted
    try:
        with main.signals.on_signals(), ddp.joined() as first:
            runner.train(config, progress=False) if first else runner.follow()
    except Stopped as stopped:
        return stopped.status


def test_a_run_that_is_killed_or_stopped_goes_on(runs, tmp_path, monkeypatch):
    config = tiny("kd", epochs=5, views=2, augment="standard")
    path = store.cache_folder() / f"{config.path}.checkpoint.safetensors"
    killed, left = together(train_until, runs, config, 1, signal.SIGKILL)
    assert killed == -signal.SIGKILL and left not in (0, None)
    assert len(json.loads(store.load_tensors(path)[1]["history"])) == 1
    assert together(train_until, runs, config, 2, signal.SIGTERM) == [143, 0]
    assert len(json.loads(store.load_tensors(path)[1]["history"])) == 3
    assert together(train_until, runs, config, 9, signal.SIGTERM) == [0, 0]
    assert not list(runs.rglob("*.checkpoint.safetensors"))
    stopped = records.find(config)
    assert stopped.device["processes"] == 2
    monkeypatch.setenv("IEKD_RUNS", str(tmp_path / "calm"))
    assert together(train_until, tmp_path / "calm", config, 9, signal.SIGTERM) == [0, 0]
    assert content(stopped) == content(records.find(config))


def run_command(said: Path, *words: str) -> int:
    with (said / os.environ["RANK"]).open("w") as file, redirect_stderr(file):
        return main.main(["run", *words])


def test_a_run_that_fails_says_so_once(runs, tmp_path):
    config = tiny(lr=1e20)
    assert together(run_command, runs, tmp_path, *config.command().split()[2:]) == [1, 0]
    assert "Nothing was recorded" in (tmp_path / "0").read_text()
    assert records.find(config) is None


def test_a_run_that_another_job_trains_is_left_to_it(runs, tmp_path):
    config = tiny()
    with locks.claim(config):
        words = [*config.command().split()[2:], "--no-wait"]
        assert together(run_command, runs, tmp_path, *words) == [75, 0]
    assert locks.BUSY in (tmp_path / "0").read_text()


def break_in_the_second() -> None:
    step = ddp.Trainer.step

    def broken(self, *arguments):
        if not self.leads:
            raise MemoryError("no memory left here")
        return step(self, *arguments)

    ddp.Trainer.step = broken
    with ddp.joined() as first:
        runner.train(tiny(), progress=False) if first else runner.follow()


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


def test_torchrun(runs):
    """As people run it; the result is that of one process up to the batch statistics: within ten
    points here.
    """
    config = tiny("ft", epochs=4)
    torchrun = "-m torch.distributed.run --standalone --nproc-per-node 2 -m iekd"
    process = subprocess.run(
        [sys.executable, *torchrun.split(), *config.command().split()[1:]],
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
    assert two.device["processes"] == 2 and len(records.load()) == 3
    assert two.history["loss"][0] == pytest.approx(one.history["loss"][0], rel=0.1)
