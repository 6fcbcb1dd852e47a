"""Grids as data: a YAML file that names many runs, and the runner that finishes them in parallel processes.

title: Ablations at class scale
notebook: book/run.ipynb          # the notebook that makes one of these runs with papermill
base: {preset: class, seed: [0, 1, 2, 3, 4]}
runs:
  - {method: ie-ft, explore: [l1, cka]}    # lists multiply
"""

from __future__ import annotations

import itertools
import os
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from tqdm import tqdm

from iekd import data, records, store, training
from iekd.config import ConfigError, RunConfig

KEYS = ("title", "notebook", "base", "runs")


def read(path: Path) -> list[RunConfig]:
    """The runs of a grid file, each once, seed by seed: a sweep cut short leaves complete comparisons.

    Raises `ConfigError` that names the file and the entry.
    """
    try:
        grid = yaml.safe_load(path.read_text())
        entries = [{**grid.get("base", {}), **entry} for entry in grid["runs"]]
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is not a grid: it needs a list `runs:` of mappings ({error})") from None
    if unknown := set(grid) - set(KEYS):
        raise ConfigError(f"{path}: {', '.join(map(str, unknown))}: no such key; the keys of a grid are {', '.join(KEYS)}")
    configs = {}
    for number, entry in enumerate(entries, 1):
        for fields in expand(entry):
            try:
                config = RunConfig.create(**{str(name): value for name, value in fields.items()})  # YAML reads `on:` as True
            except ConfigError as error:
                raise ConfigError(f"{path}, run {number}: {error}") from None
            configs[config.path] = config
    return sorted(configs.values(), key=lambda config: config.seed)


def expand(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """Every combination of the entry's lists."""
    values = [value if isinstance(value, list) else [value] for value in entry.values()]
    return [dict(zip(entry, combination, strict=True)) for combination in itertools.product(*values)]


def with_parents(configs: list[RunConfig]) -> dict[str, RunConfig]:
    """The runs and all that they need, by path, parents before children."""
    ordered: dict[str, RunConfig] = {}
    for config in configs:
        ordered |= with_parents(list(config.parents().values()))
        ordered[config.path] = config
    return ordered


class Outcome(NamedTuple):
    """How one run of a sweep ended: 'done', 'loaded' (its record was there), 'failed' (reason = last line of its log)."""

    config: RunConfig
    state: str
    reason: str = ""


def log_path(config: RunConfig) -> Path:
    return store.cache_folder() / f"{config.path}.log"


def sweep(configs: list[RunConfig], jobs: int = 1) -> list[Outcome]:
    """Finish all runs and their parents, `jobs` at a time, each in a process of its own with an equal share of the cores.

    A failed run is reported and does not stop the others; those that need it are reported as failed too. Ctrl-C stops cleanly:
    the same command goes on from the records and checkpoints.
    """
    outcomes = {config.path: Outcome(config, "loaded") for config in configs if records.find(config)}
    todo = [config for config in configs if config.path not in outcomes]  # a finished run needs no parents
    outcomes |= {config.path: Outcome(config, "failed", reason) for config in todo if (reason := _impossible(config))}
    needed = with_parents([config for config in todo if config.path not in outcomes])
    outcomes |= {path: Outcome(config, "loaded") for path, config in needed.items() if records.find(config)}
    pending = {path: config for path, config in needed.items() if path not in outcomes}
    running: dict[Future, str] = {}
    bar = tqdm(total=len(pending), desc="runs", unit="run", smoothing=0)
    children: set[subprocess.Popen] = set()
    with bar, ThreadPoolExecutor(jobs) as pool:
        try:
            while pending or running:
                for path, config in list(pending.items()):
                    parents = [outcomes.get(parent.path) for parent in config.parents().values()]
                    if any(p is not None and p.state == "failed" for p in parents):
                        outcomes[path] = Outcome(pending.pop(path), "failed", "a parent failed")
                        bar.update()
                    elif all(parents) and len(running) < jobs:
                        running[pool.submit(_run_one, pending.pop(path), jobs, children)] = path
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    outcome = outcomes[running.pop(future)] = future.result()
                    bar.set_postfix_str(outcome.config.path)
                    bar.update()
                    if outcome.state == "failed":
                        tqdm.write(f"failed: {outcome.config.path}: {outcome.reason} (log: {log_path(outcome.config)})")
        except KeyboardInterrupt:
            for child in list(children):  # the threads that wait for them take them out
                child.terminate()
            raise
    return list(outcomes.values())


def _impossible(config: RunConfig) -> str:
    """Why a run cannot be made, found out before its parents are; '' if nothing speaks against it."""
    try:
        training.check_pair(config)
    except (ConfigError, data.DataError, training.TrainingError) as error:
        return str(error)
    return ""


def _run_one(config: RunConfig, jobs: int, children: set[subprocess.Popen]) -> Outcome:
    """One run in its own process by the command that its record names; output goes to its log in the cache."""
    try:
        return _run_logged(config, jobs, children)
    except OSError as error:  # the disk is full, or no process can be started
        return Outcome(config, "failed", f"cannot start: {error}")


def _run_logged(config: RunConfig, jobs: int, children: set[subprocess.Popen]) -> Outcome:
    threads = max(1, (os.cpu_count() or 1) // jobs)
    log = log_path(config)
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with log.open("w") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "iekd", *shlex.split(config.command())[1:]], stdout=output, stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )  # fmt: skip
        children.add(child)
        code = child.wait()
        children.discard(child)
    if code == 0:
        return Outcome(config, "done", f"{time.monotonic() - began:.0f} s")
    if code < 0:
        return Outcome(config, "failed", f"killed by {signal.Signals(-code).name}")
    lines = log.read_text(errors="replace").strip().splitlines()
    return Outcome(config, "failed", lines[-1] if lines else f"exit status {code}")
