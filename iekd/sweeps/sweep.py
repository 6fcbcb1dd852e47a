"""Running a grid: every run in a process of its own, parents first, until all are done, the time is over, or a signal comes.

Nothing is kept but records and checkpoints, so a sweep that ended in any way goes on with the same command, and any number of
sweeps, on any number of machines, can work on one store.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from iekd import data, records
from iekd.config import RunConfig, grid
from iekd.errors import ConfigError
from iekd.records import store
from iekd.speed import memory
from iekd.training import checkpoint, locks, runner, signals
from iekd.training.pack import in_step

POLL_SECONDS = 0.1
SHOW_SECONDS = {True: 1.0, False: 60.0}  # until the bar is drawn again, on a terminal and in a file
EPOCHS = re.compile(rb"(\d+)/(\d+) \[[^\]]*epoch")  # in the bar of a run
PYTHON = [sys.executable, "-P"]  # without the current folder, where a person's random.py may lie
LOOK_AGAIN_SECONDS = 2.0  # until a run that another process trains is looked at again


class Outcome(NamedTuple):
    """How one run of a sweep ended: 'loaded' (its record was there), 'done', 'failed', 'stopped' (begun) or 'pending'."""

    config: RunConfig
    state: str
    reason: str = ""

    @property
    def finished(self) -> bool:
        return self.state in ("loaded", "done")


def sweep(
    *grids: list[RunConfig],
    jobs: int = 1,
    time_limit: float = math.inf,
    pack: int = 1,
    analyse: bool = False,
) -> list[Outcome]:
    """Finish all runs and their parents, `jobs` processes at a time with an equal share of the cores, up to `pack` runs in each.

    The runs of a grid have precedence over those of the next, which fill what would else stand idle. Runs are packed if they can go in
    lock step (`pack.in_step`) and can start at that moment. A failed run is reported and does not stop the others; those that need it
    are reported as failed too, and so is one whose record is damaged. Parents of finished runs whose record is gone are made again. A
    run that another process trains is left to it. After `time_limit` seconds, or when a signal asks to stop (`signals.asked`), running
    runs write a checkpoint and leave, which takes `signals.GRACE` seconds at most. With `analyse` the runs of the grids are
    measured (`iekd.analysis.metrics`) by the process that made them, right afterwards. Raises `StoreError` if there can be no store.
    """
    work = _Sweep(grids, jobs, pack, analyse)
    end = time.monotonic() + time_limit
    with work.bar, signals.deferred(signals.GRACE + 10):
        try:
            while work.left() and time.monotonic() < end and not signals.asked():
                work.collect()
                work.start()
                work.show()
                time.sleep(POLL_SECONDS)
        finally:
            work.stop()
    return list(work.outcomes.values())


def log_path(config: RunConfig) -> Path:
    """Where a sweep writes the output of a run: appended, for two sweeps may try the same run."""
    return store.cache_folder() / f"{config.path}.log"


def in_order(grids: Sequence[list[RunConfig]], needed: dict[str, RunConfig]) -> list[RunConfig]:
    """Grid by grid and seed by seed, so that a sweep cut short leaves complete comparisons; in a seed what takes longest, with all that
    waits for it. `needed`: what is to be trained of the grids' runs and their parents, parents first."""
    turn: dict[str, tuple[int, int]] = {}  # grid and seed of the first run that needs it
    for number, configs in enumerate(grids):
        for config in configs:
            turn.setdefault(config.path, (number, config.seed))
    chain = {path: 0.0 for path in needed}  # the longest that waits for it, and itself
    for path, config in reversed(needed.items()):  # children before parents
        chain[path] += grid.cost(config)
        turn.setdefault(path, (len(grids), config.seed))  # a parent of finished runs only
        for parent in (
            parent.path for parent in config.parents().values() if parent.path in needed
        ):
            chain[parent] = max(chain[parent], chain[path])
            turn[parent] = min(turn.get(parent, turn[path]), turn[path])
    return sorted(needed.values(), key=lambda config: (turn[config.path], -chain[config.path]))


class _Child(NamedTuple):
    """A process with its run, or with several; the first gives the log its name."""

    configs: list[RunConfig]
    process: subprocess.Popen
    began: float
    said: int  # bytes of the log that were there before

    @property
    def title(self) -> str:
        first, *others = self.configs
        return f"{first.variant} seed {first.seed}" + (f" and {len(others)} more" if others else "")

    def log(self) -> bytes:
        """What it has said so far."""
        try:
            with log_path(self.configs[0]).open("rb") as file:
                file.seek(self.said)
                return file.read()
        except OSError:  # somebody cleared the cache
            return b""

    def progress(self) -> tuple[float, float]:
        """The part of its epochs that were done when it began, by checkpoints, and the part that is done now: as its log says."""
        bars = EPOCHS.findall(self.log())
        begun, now = (
            (int(done) / int(all_) for done, all_ in (bars[0], bars[-1])) if bars else (0.0, 0.0)
        )
        return begun, now

    def outcome(self, config: RunConfig) -> Outcome | None:
        """How one of its runs ended; None if another process trains this run."""
        code = self.process.returncode
        if code == 0 or (len(self.configs) > 1 and records.find(config)):
            packed = f", in a pack of {len(self.configs)}" if len(self.configs) > 1 else ""
            return Outcome(config, "done", f"{time.monotonic() - self.began:.0f} s{packed}")
        if code == signals.LATER:
            return None
        if code in [status for number in signals.SIGNALS for status in (128 + number, -number)]:
            begun = checkpoint.path_of(config).exists()
            return Outcome(
                config,
                "stopped",
                "goes on from its checkpoint" if begun else "before its first checkpoint",
            )
        if code < 0:
            return Outcome(config, "failed", f"killed by {signal.Signals(-code).name}")
        lines = self.log().decode(errors="replace").strip().splitlines()
        # the colon ends the path: seed1 is not seed10
        about = (
            [line for line in lines if f"{config.path}:" in line] if len(self.configs) > 1 else []
        )
        if about and about[-1].endswith(locks.BUSY):
            return None
        return Outcome(config, "failed", (about or lines or [f"exit status {code}"])[-1])


class _Sweep:
    """What is known of the runs, what runs, what is still to be started."""

    def __init__(
        self, grids: Sequence[list[RunConfig]], jobs: int, pack: int, analyse: bool = False
    ):
        self.jobs, self.pack, self.analyse = jobs, pack, analyse
        store.runs_folder()  # a name that is none is no run's fault
        self.without: dict[str, str] = {}  # data set -> why it cannot be had
        configs = list({config.path: config for configs in grids for config in configs}.values())
        self.asked_for = {config.path for config in configs}
        self.outcomes = {config.path: self.look(config) for config in configs}
        possible = [config for config in configs if self.outcomes[config.path].state != "failed"]
        needed = grid.with_parents(possible + self.lost_partners(possible))
        self.outcomes |= {
            path: self.look(config) for path, config in needed.items() if path not in self.outcomes
        }
        pending = in_order(
            grids, {path: c for path, c in needed.items() if self.outcomes[path].state == "pending"}
        )
        self.outcomes |= {
            config.path: self.outcomes.pop(config.path) for config in pending
        }  # as they will be started
        self.pending = {config.path: config for config in pending}
        self.parents = {
            config.path: [parent.path for parent in config.parents().values()] for config in pending
        }
        self.running: list[_Child] = []
        self.look_again: dict[str, float] = {}  # runs that another process trains
        self.cost = {path: grid.cost(config) for path, config in self.pending.items()}
        self.resumed = (
            0.0  # cost of what checkpoints had of the runs that have ended: it took no time here
        )
        self.shown = -math.inf
        self.bar = tqdm(
            total=sum(self.cost.values()),
            smoothing=0,
            bar_format="{percentage:3.0f} %|{bar}| {elapsed}, {remaining} left{postfix}",
        )

    def look(self, config: RunConfig) -> Outcome:
        """What is known of a run before anything runs. Whatever is wrong with one, the others do not suffer from it."""
        try:
            if runner.finished(config):
                return Outcome(config, "loaded")
            if config.dataset not in self.without:
                self.without[config.dataset] = _no_data(config.dataset)
            if why := self.without[config.dataset]:
                return Outcome(config, "failed", why)
            runner.check_pair(config)
            grid.cost(config)
        except Exception as error:
            return Outcome(config, "failed", _reason(error))
        return Outcome(config, "pending")

    def lost_partners(self, configs: list[RunConfig]) -> list[RunConfig]:
        """The second networks of finished mutual trainings whose own records are gone."""
        finished = [c for c in configs if c.is_mutual and self.outcomes[c.path].state == "loaded"]
        return [c.partner() for c in finished if self.look(c.partner()).state == "pending"]

    def cost_of(self, configs: Iterable[RunConfig]) -> float:
        return sum(self.cost[config.path] for config in configs)

    def left(self) -> bool:
        return bool(self.pending or self.running)

    def start(self) -> None:
        """Start what can start; settle what cannot, or is done elsewhere."""
        for path, config in list(self.pending.items()):
            bad = [
                self.outcomes[parent].state
                for parent in self.parents[path]
                if self.outcomes[parent].state in ("failed", "stopped")
            ]
            if bad:
                self.settle(Outcome(config, "failed", f"a parent {bad[0]}"))
        for config in list(self.pending.values()):
            if (
                len(self.running) < self.jobs
                and config.path in self.pending
                and self.can_start(config)
            ):
                self.start_with_others(config)

    def can_start(self, config: RunConfig) -> bool:
        """Whether nothing keeps a run from being started. One that another process has made, or that cannot be claimed, is settled."""
        parents = [self.outcomes[parent] for parent in self.parents[config.path]]
        if not all(p.finished for p in parents) or time.monotonic() < self.look_again.get(
            config.path, 0
        ):
            return False
        try:
            if runner.finished(config):
                self.settle(Outcome(config, "loaded", "another process made it"))
                return False
            if _is_busy(config):
                self.look_again[config.path] = time.monotonic() + LOOK_AGAIN_SECONDS
                return False
        except (OSError, store.StoreError) as error:
            self.settle(Outcome(config, "failed", f"cannot start: {error}"))
            return False
        return True

    def start_with_others(self, config: RunConfig) -> None:
        """Start a process for this run, and for those after it that can go in step with it, up to `pack`."""
        chosen = [config]
        for other in list(self.pending.values()) if self.pack > 1 else ():
            alike = in_step(other) == in_step(config) and (other.path in self.asked_for) == (
                config.path in self.asked_for
            )
            if len(chosen) < self.pack and other not in chosen and alike and self.can_start(other):
                chosen.append(other)
        try:
            analyse = self.analyse and all(each.path in self.asked_for for each in chosen)
            self.running.append(_start_process(chosen, self.jobs, analyse))
        except OSError as error:  # the disk is full, or no process can be started
            for each in chosen:
                self.settle(Outcome(each, "failed", f"cannot start: {error}"))
            return
        for each in chosen:
            del self.pending[each.path]
        self.show(now=True)

    def collect(self) -> None:
        """Settle the runs whose process has ended."""
        ended = [child for child in self.running if child.process.poll() is not None]
        self.running = [child for child in self.running if child not in ended]
        for child in ended:
            self.resumed += self.cost_of(child.configs) * child.progress()[0]
            for config in child.configs:
                self.settle_or_wait(config, child)

    def settle_or_wait(self, config: RunConfig, child: _Child) -> None:
        try:
            outcome = child.outcome(config)
        except store.StoreError as error:  # its record was damaged meanwhile
            outcome = Outcome(config, "failed", str(error))
        if outcome:
            self.settle(outcome, log_path(child.configs[0]))
        else:
            self.pending[config.path] = config
            self.look_again[config.path] = time.monotonic() + LOOK_AGAIN_SECONDS

    def settle(self, outcome: Outcome, log: Path | None = None) -> None:
        self.outcomes[outcome.config.path] = outcome
        self.pending.pop(outcome.config.path, None)
        if outcome.state == "failed":
            tqdm.write(
                f"failed: {outcome.config.path}: {outcome.reason} (log: {log or log_path(outcome.config)})"
            )
        self.show(now=True)

    def show(self, now: bool = False) -> None:
        """Draw the bar, now or when it is time: what is settled, and the epochs that the runs under way have behind them."""
        if not now and time.monotonic() < self.shown + SHOW_SECONDS[self.bar.fp.isatty()]:
            return
        self.shown = time.monotonic()
        under_way = [(self.cost_of(child.configs), *child.progress()) for child in self.running]
        self.bar.initial = self.resumed + sum(cost * begun for cost, begun, _ in under_way)
        self.bar.n = (
            self.bar.total
            - self.cost_of(self.pending.values())
            - sum(cost * (1 - done) for cost, _, done in under_way)
        )
        settled = sum(outcome.state != "pending" for outcome in self.outcomes.values())
        running = ", ".join(child.title for child in self.running)
        self.bar.set_postfix_str(f"{settled}/{len(self.outcomes)} runs; now {running or 'none'}")

    def stop(self) -> None:
        """Ask what runs to leave, and see to it. After a second Ctrl-C, or when asking did not help, it is killed: its last checkpoint
        stands."""
        for child in self.running:
            child.process.terminate()
        patience = time.monotonic() + signals.GRACE + 5
        try:
            for child in self.running:
                child.process.wait(max(0, patience - time.monotonic()))
        except subprocess.TimeoutExpired:
            pass
        finally:
            for child in self.running:
                child.process.kill()
                child.process.wait()
            self.collect()


def _no_data(dataset: str) -> str:
    """Why a data set cannot be had, after one try to download it; '' if it is there."""
    try:
        data.load_raw(dataset)
    except Exception as error:
        return _reason(error)
    return ""


def _reason(error: Exception) -> str:
    """The message of one of our own errors; of another one also what it is."""
    ours = isinstance(error, ConfigError | data.DataError | runner.TrainingError | store.StoreError)
    return str(error) if ours else f"{type(error).__name__}: {error}"


def _is_busy(config: RunConfig) -> bool:
    try:
        with locks.claim(config, wait=False):
            return False
    except locks.Busy:
        return True


def _start_process(configs: list[RunConfig], jobs: int, analyse: bool = False) -> _Child:
    """A process for a run, by the command that its record names, or for a pack; output goes to the log of the first, in the cache."""
    log = log_path(configs[0])
    log.parent.mkdir(parents=True, exist_ok=True)
    if len(configs) == 1:
        command = [*PYTHON, "-m", "iekd", *shlex.split(configs[0].command())[1:], "--no-wait"]
    else:
        command = [*PYTHON, "-m", "iekd", "pack", *(config.command() for config in configs)]
    command += ["--analyse"] if analyse else []
    threads, path = str(max(1, cores() // jobs)), os.pathsep.join(filter(None, sys.path))
    environment = {
        "OMP_NUM_THREADS": threads,
        **memory.HUGE_PAGES,
        **os.environ,
        "PYTHONPATH": path,
    }
    with log.open("ab") as output:
        began, said = time.monotonic(), output.tell()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    return _Child(configs, process, began, said)


def cores() -> int:
    """Cores that this process may use: of a cluster node often not all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
