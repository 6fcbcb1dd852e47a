"""One process of a sweep: a run by the command in its record, or several as a pack."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from iekd import records
from iekd.config import RunConfig
from iekd.records import store
from iekd.speed import memory
from iekd.training import checkpoint, locks, signals

# In the bar of a run: epochs done and total.
EPOCHS = re.compile(rb"(\d+)/(\d+) \[[^\]]*epoch")
# Without the current folder, which may contain somebody's random.py.
PYTHON = [sys.executable, "-P"]
# Exit statuses of a process that was asked to stop; negative if it died before it could respond.
STOPPED = {status for number in signals.SIGNALS for status in (128 + number, -number)}


class Outcome(NamedTuple):
    """How a run of a sweep ended.

    state: 'loaded' (its record existed), 'done', 'failed', 'stopped' (unfinished) or 'pending'.
    """

    config: RunConfig
    state: str
    reason: str = ""

    @property
    def finished(self) -> bool:
        """Whether it has a record."""
        return self.state in ("loaded", "done")


class Child(NamedTuple):
    """A process with its run or runs; the log is named after the first."""

    configs: list[RunConfig]
    process: subprocess.Popen
    began: float
    # Bytes that were in the log before.
    said: int

    @property
    def title(self) -> str:
        """Its name in the bar."""
        first, *others = self.configs
        return f"{first.variant} seed {first.seed}" + (f" and {len(others)} more" if others else "")

    def log(self) -> bytes:
        """Its output so far."""
        try:
            with log_path(self.configs[0]).open("rb") as file:
                file.seek(self.said)
                return file.read()
        except OSError:  # somebody cleared the cache
            return b""

    def progress(self) -> tuple[float, float]:
        """The share of its epochs in checkpoints when it began, and the share done now."""
        bars = EPOCHS.findall(self.log())
        if not bars:
            return 0.0, 0.0
        begun, now = (int(done) / int(epochs) for done, epochs in (bars[0], bars[-1]))
        return begun, now

    def outcome(self, config: RunConfig) -> Outcome | None:
        """How one of its runs ended; None if another process trains this run."""
        code, packed = self.process.returncode, len(self.configs) > 1
        if code == 0 or (packed and records.find(config)):
            together = f", in a pack of {len(self.configs)}" if packed else ""
            return Outcome(config, "done", f"{time.monotonic() - self.began:.0f} s{together}")
        if code == signals.LATER:
            return None
        if code in STOPPED:
            begun = checkpoint.path_of(config).exists()
            reason = "continues from its checkpoint" if begun else "before its first checkpoint"
            return Outcome(config, "stopped", reason)
        if code < 0:
            return Outcome(config, "failed", f"killed by {signal.Signals(-code).name}")
        return self._failure(config)

    def _failure(self, config: RunConfig) -> Outcome | None:
        """The last line of the log; for a pack, the last one about this run."""
        lines = self.log().decode(errors="replace").strip().splitlines()
        if len(self.configs) > 1:
            # The colon ends the path, so that seed1 does not match seed10.
            about = [line for line in lines if f"{config.path}:" in line]
            if about and about[-1].endswith(locks.BUSY):
                return None
            lines = about or lines
        return Outcome(config, "failed", (lines or [f"exit status {self.process.returncode}"])[-1])


def log_path(config: RunConfig) -> Path:
    """Where a sweep writes the output of a run: appended, as two sweeps may try the same run."""
    return store.cache_folder() / f"{config.path}.log"


def start(configs: list[RunConfig], jobs: int, analyse: bool = False) -> Child:
    """Start a process for one run or a pack, with an equal share of the cores for each of `jobs`.

    Output goes to the log of the first run. Raises `OSError`, and `StoreError` without a cache.
    """
    if len(configs) == 1:
        words = [*shlex.split(configs[0].command())[1:], "--no-wait"]
    else:
        words = ["pack", *(config.command() for config in configs)]
    words += ["--analyse"] if analyse else []
    usual = {"OMP_NUM_THREADS": str(max(1, cores() // jobs)), **memory.HUGE_PAGES}
    environment = usual | os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

    # The process.
    log = log_path(configs[0])
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        began, said = time.monotonic(), output.tell()
        streams: dict[str, Any] = {"stdout": output, "stderr": subprocess.STDOUT}
        words = [*PYTHON, "-m", "iekd", *words]
        process = subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, **streams)
    return Child(configs, process, began, said)


def cores() -> int:
    """The number of cores that this process may use: on a cluster node, often not all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
