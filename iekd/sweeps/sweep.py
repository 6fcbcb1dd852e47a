"""Running grids: every run in its own process, parents first, until all are done.

Or until the time is up, or a signal arrives. Only records and checkpoints are kept, so a sweep can
always be continued with the same command, however it ended, and any number of sweeps, on any number
of machines, can work on one store.
"""

import math
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from iekd import data
from iekd.config import RunConfig, grid
from iekd.errors import OURS, Busy, StoreError
from iekd.records import store
from iekd.sweeps import cost, process
from iekd.sweeps.process import Child, Outcome, log_path
from iekd.training import locks, runner, signals
from iekd.training.pack import in_step

POLL_SECONDS = 0.1
# Interval for redrawing the bar, on a terminal and in a file.
SHOW_SECONDS = {True: 1.0, False: 60.0}
# Interval for checking a run that another process trains.
LOOK_AGAIN_SECONDS = 2.0


def sweep(
    *grids: list[RunConfig],
    jobs: int = 1,
    time_limit: float = math.inf,
    pack: int = 1,
    analyse: bool = False,
) -> list[Outcome]:
    """Finish all runs and their parents; the runs of a grid come before those of the next.

    A failed run is reported and does not stop the others; runs that need it are reported as failed
    too, and so is one whose record is damaged. Parents of finished runs are trained again if their
    record is gone. A run that another process trains is left to it.

    Args:
        jobs: processes at a time, each with an equal share of the cores.
        time_limit: seconds; then, or when a signal asks to stop (`signals.asked`), runs in progress
            write a checkpoint and exit, within `signals.GRACE` seconds.
        pack: at most so many runs in one process, if they can go in lock step (`pack.in_step`) and
            can start at the same time.
        analyse: measure each run of the grids (`iekd.analysis.metrics`) in the process that trained
            it, right afterwards.

    Raises:
        StoreError: the store cannot be created.
    """
    work = Sweep(grids, jobs, pack, analyse)
    end = time.monotonic() + time_limit
    with work.bar, signals.deferred(signals.GRACE + 10):
        try:
            while (work.running or work.waiting()) and not signals.asked():
                if time.monotonic() >= end:
                    break
                work.collect()
                work.start()
                work.show()
                time.sleep(POLL_SECONDS)
        finally:
            work.stop()
    return [job.outcome for job in work.jobs.values()]


@dataclass
class Job:
    """What a sweep knows about one run."""

    config: RunConfig
    outcome: Outcome
    # True if a grid names it, False if a run of a grid needs it.
    asked_for: bool
    cost: float = 0.0
    # Paths of the runs that must be finished first.
    parents: list[str] = field(default_factory=list)
    # Earliest time, by the monotonic clock, to check it again: another process trains it.
    look_again: float = 0.0
    running: bool = False

    @property
    def waits(self) -> bool:
        """Whether it has yet to be started."""
        return self.outcome.state == "pending" and not self.running


class Sweep:
    """The runs of a sweep by path, in the order in which they start, and what is running."""

    def __init__(
        self, grids: Sequence[list[RunConfig]], processes: int, pack: int, analyse: bool = False
    ):
        self.processes, self.pack, self.analyse = processes, pack, analyse
        # An invalid name is not the fault of a run.
        store.runs_folder()
        self.without: dict[tuple[str, int], str] = {}

        # What the grids ask for, and what those runs need.
        asked = {config.path: config for configs in grids for config in configs}
        self.jobs = {path: Job(config, self.look(config), True) for path, config in asked.items()}
        possible = [job.config for job in self.jobs.values() if job.outcome.state != "failed"]
        needed = grid.with_parents(possible + self.lost_partners(possible))
        for path, config in needed.items():
            if path not in self.jobs:
                self.jobs[path] = Job(config, self.look(config), asked_for=False)

        # Runs to be trained come last, in their order.
        pending = {path: config for path, config in needed.items() if self.jobs[path].waits}
        for config in cost.in_order(grids, pending):
            job = self.jobs[config.path] = self.jobs.pop(config.path)
            job.cost = cost.cost(config)
            job.parents = [parent.path for parent in config.parents().values()]

        # What is running, and its progress.
        self.running: list[Child] = []
        # Cost of the parts of ended runs that were already in checkpoints: they took no time here.
        self.resumed = 0.0
        self.shown = -math.inf
        bar = "{percentage:3.0f} %|{bar}| {elapsed}, {remaining} left{postfix}"
        total = sum(job.cost for job in self.jobs.values())
        self.bar = tqdm(total=total, smoothing=0, bar_format=bar)

    # ------------------------------------------------------------------ planning

    def look(self, config: RunConfig) -> Outcome:
        """What is known about a run. Whatever is wrong with it does not affect the others."""
        try:
            if runner.finished(config):
                return Outcome(config, "loaded")
            images = config.dataset, config.image_size
            if images not in self.without:
                self.without[images] = _no_data(*images)
            if why := self.without[images]:
                return Outcome(config, "failed", why)
            runner.check_pair(config)
            cost.cost(config)
        except Exception as error:
            return Outcome(config, "failed", _reason(error))
        return Outcome(config, "pending")

    def lost_partners(self, configs: list[RunConfig]) -> list[RunConfig]:
        """The second networks of finished mutual trainings whose own records are gone."""
        finished = [c for c in configs if c.is_mutual and self.jobs[c.path].outcome.finished]
        return [c.partner() for c in finished if self.look(c.partner()).state == "pending"]

    # ------------------------------------------------------------------ running

    def waiting(self) -> list[Job]:
        """The runs that have yet to be started, in order."""
        return [job for job in self.jobs.values() if job.waits]

    def start(self) -> None:
        """Start what can start; settle what cannot, or was done elsewhere."""
        for job in self.waiting():
            for state in (self.jobs[parent].outcome.state for parent in job.parents):
                if job.waits and state in ("failed", "stopped"):
                    self.settle(Outcome(job.config, "failed", f"a parent {state}"))
        for job in self.waiting():
            if len(self.running) < self.processes and job.waits and self.can_start(job):
                self.start_with_others(job)

    def can_start(self, job: Job) -> bool:
        """Whether a run can be started.

        One that another process has finished, or that cannot be claimed, is settled.
        """
        parents = [self.jobs[parent].outcome for parent in job.parents]
        if not all(parent.finished for parent in parents) or time.monotonic() < job.look_again:
            return False
        try:
            if not runner.finished(job.config):
                with locks.claim(job.config, wait=False):
                    return True
            self.settle(Outcome(job.config, "loaded", "made by another process"))
        except Busy:
            job.look_again = time.monotonic() + LOOK_AGAIN_SECONDS
        except (OSError, StoreError) as error:
            self.settle(Outcome(job.config, "failed", f"cannot start: {error}"))
        return False

    def start_with_others(self, job: Job) -> None:
        """Start a process for this run and for those after it that can be packed with it."""
        chosen = [job]
        for other in self.waiting() if self.pack > 1 else []:
            alike = in_step(other.config) == in_step(job.config)
            alike = alike and other.asked_for == job.asked_for and other is not job
            if len(chosen) < self.pack and alike and self.can_start(other):
                chosen.append(other)

        # One process for all of them.
        configs = [each.config for each in chosen]
        try:
            analyse = self.analyse and job.asked_for
            self.running.append(process.start(configs, self.processes, analyse))
        except OSError as error:  # the disk is full, or no process can be started
            for config in configs:
                self.settle(Outcome(config, "failed", f"cannot start: {error}"))
            return
        for each in chosen:
            each.running = True
        self.show(now=True)

    def collect(self) -> None:
        """Settle the runs whose process has ended, or keep waiting for another process."""
        ended = [child for child in self.running if child.process.poll() is not None]
        self.running = [child for child in self.running if child not in ended]
        for child in ended:
            self.resumed += self.cost_of(child.configs) * child.progress()[0]
            for config in child.configs:
                job = self.jobs[config.path]
                job.running = False
                try:
                    outcome = child.outcome(config)
                except StoreError as error:  # its record has been damaged meanwhile
                    outcome = Outcome(config, "failed", str(error))
                if outcome:
                    self.settle(outcome, log_path(child.configs[0]))
                else:
                    job.look_again = time.monotonic() + LOOK_AGAIN_SECONDS

    def settle(self, outcome: Outcome, log: Path | None = None) -> None:
        """Record how a run ended."""
        path = outcome.config.path
        self.jobs[path].outcome = outcome
        if outcome.state == "failed":
            log = log or log_path(outcome.config)
            tqdm.write(f"failed: {path}: {outcome.reason} (log: {log})")
        self.show(now=True)

    def stop(self) -> None:
        """Ask running processes to exit, and make sure that they do.

        After a second Ctrl-C, or if they do not respond, they are killed: their last checkpoints
        remain.
        """
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

    # ------------------------------------------------------------------ showing

    def cost_of(self, configs: Iterable[RunConfig]) -> float:
        """The cost of some runs together."""
        return sum(self.jobs[config.path].cost for config in configs)

    def show(self, now: bool = False) -> None:
        """Draw the bar, now or when it is due: what is settled, and the epochs in progress."""
        if not now and time.monotonic() < self.shown + SHOW_SECONDS[self.bar.fp.isatty()]:
            return
        self.shown = time.monotonic()
        resumed, left = self.resumed, sum(job.cost for job in self.waiting())
        for child in self.running:
            total, (begun, done) = self.cost_of(child.configs), child.progress()
            resumed += total * begun
            left += total * (1 - done)
        self.bar.initial, self.bar.n = resumed, self.bar.total - left

        # In words.
        settled = sum(job.outcome.state != "pending" for job in self.jobs.values())
        running = ", ".join(child.title for child in self.running) or "none"
        self.bar.set_postfix_str(f"{settled}/{len(self.jobs)} runs; now {running}")


def _no_data(dataset: str, size: int) -> str:
    """Why a data set is unavailable, after one attempt to download it; '' if it is available."""
    try:
        data.load_raw(dataset, size=size)
    except Exception as error:
        return _reason(error)
    return ""


def _reason(error: Exception) -> str:
    """The message of one of our own errors; for any other, with its type."""
    return str(error) if isinstance(error, OURS) else f"{type(error).__name__}: {error}"
