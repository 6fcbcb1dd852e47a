"""The commands that make runs (one, several in lock step, many) and move them between machines."""

import collections
import itertools
import math
import os
import shlex
import sys
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from iekd import records
from iekd.analysis import metrics
from iekd.cli.options import count, megabytes, seconds, spelled
from iekd.cli.parser import (
    GRID,
    IMPORT,
    Options,
    command,
    configuration,
    flag,
    given_fields,
    option,
    parser,
)
from iekd.config import RunConfig, grid, refuse_unread
from iekd.errors import Busy, ConfigError, TrainingError
from iekd.records import store, transfer
from iekd.sweeps.sweep import sweep as run_sweep
from iekd.training import ddp, runner, signals
from iekd.training.signals import LATER

LOG = "write curves there while training: CSV, and for TensorBoard where it is installed"
ANALYSE = "then measure what it learned, as iekd analyse does, while its weights are there"


@command(
    "run",
    flag("--dry-run", "print the configuration and the path of its record, train nothing"),
    flag("--no-wait", f"leave with status {LATER} if another process trains this run"),
    flag("--analyse", ANALYSE),
    option("--log", LOG, metavar="DIR"),
    option("--import", IMPORT, metavar="FILE"),
)
def run(options: Options) -> None:
    """load, resume or train one run, its parents first"""
    config = configuration(options)
    if options.dry_run:
        print(config.model_dump_json(indent=1, exclude=config.unread()))
        print(f"hash {config.hash}\nrecord {records.record_path(config)}")
        return
    _log_to(options.log)
    with ddp.joined() as first:
        if not first:
            return runner.follow()
        record = runner.train(config, wait=not options.no_wait)
    if options.analyse:
        _measure(config)

    # The results.
    for rule, metric in record.metrics.items():
        if metric and metric.test_error is not None:
            print(f"{rule:>13}: test error {metric.test_error:.2f} % (epoch {metric.epoch})")
        elif metric:
            print(f"{rule:>13}: test loss {metric.test_loss:.4g} (epoch {metric.epoch})")
    speed = f"[{record.seconds:.0f} s, {record.images_per_second:.0f} images/s]"
    print(f"{'record':>13}: {records.record_path(config)}  {speed}")


def _log_to(folder: str | None) -> None:
    """Set the folder for the curves, for this process and those that it starts."""
    if folder:
        os.environ["IEKD_LOG"] = str(Path(folder).absolute())


def _measure(config: RunConfig) -> None:
    """Analyse a run that has just finished, or say why that is impossible."""
    if reason := metrics.impossible(config):
        print(f"{config.path} was not analysed: {reason}")
    else:
        metrics.analyse(config)


@command(
    "pack",
    option(
        "commands",
        "each as one word: 'iekd run --method kd --seed 1'",
        nargs="+",
        metavar="COMMAND",
    ),
    flag("--analyse", ANALYSE),
)
def pack(options: Options) -> int:
    """several runs in one process, in lock step: what `iekd sweep --pack` starts"""
    words = [spelled(shlex.split(line)[1:]) for line in options.commands]
    configs = [configuration(parser().parse_args(each)) for each in words]
    errors = []
    for config, outcome in zip(configs, runner.train_pack(configs), strict=True):
        if isinstance(outcome, TrainingError):
            errors.append(outcome)
            print(f"iekd: {outcome}", file=sys.stderr)
        elif options.analyse:
            _measure(config)
    if not errors:
        return 0
    return LATER if all(isinstance(error, Busy) for error in errors) else 1


@command(
    "sweep",
    option(
        "grids", f"{GRID}; none: the options name the runs", type=Path, nargs="*", metavar="GRID"
    ),
    option(
        "--jobs", "processes at a time; the cores are shared out (default 1)", type=count, default=1
    ),
    option(
        "--pack",
        "up to N runs in a process, in lock step (default 1); for a GPU, and for many small runs "
        "on a CPU",
        type=count,
        default=1,
        metavar="N",
    ),
    option(
        "--time-limit",
        "then write checkpoints and leave",
        type=seconds,
        default=math.inf,
        metavar="SECONDS",
    ),
    option(
        "--bundle",
        "at the end pack what there is into one archive, for iekd merge",
        type=Path,
        metavar="FILE",
    ),
    flag("--analyse", "measure each run of the grids right after it, while its weights are there"),
    option("--log", LOG, metavar="DIR"),
    flag("--dry-run", "list the runs and whether they are done"),
)
def sweep(options: Options) -> int:
    """finish all runs of grid files, those of the first file first; or every combination of
    values: --method ie-ft --explore none,l1,cka --seed 0..4"""
    grids = _grids(options)
    configs = list(itertools.chain(*grids))
    if options.dry_run:
        return _list(configs)
    if options.bundle:
        store.check_writable(options.bundle)
    _log_to(options.log)

    # The runs and their outcomes.
    limits = {"jobs": options.jobs, "time_limit": options.time_limit, "pack": options.pack}
    ended = _report(run_sweep(*grids, **limits, analyse=options.analyse), configs)
    if options.bundle:
        _print_bundled(transfer.pack(options.bundle, configs))
    signals.check()
    return LATER if ended["stopped"] + ended["pending"] else 1 if ended["failed"] else 0


def _grids(options: Options) -> list[list[RunConfig]]:
    """The runs of each grid, for the seeds given; or those that the options name."""
    fields = {}
    for name, value in given_fields(options).items():
        fields[name] = [each.strip() for each in value.split(",")]
    if not options.grids:
        if not fields:
            raise ConfigError("name a grid, or the fields of runs: --method ie-ft --seed 0..4")
        configs = grid.runs(fields)
        refuse_unread(fields, configs)
        return [configs]

    # Grids name their runs.
    named = fields.pop("seed", None)
    if fields:
        raise ConfigError(f"{', '.join(fields)}: a grid names its runs; beside one name only seeds")
    grids = [grid.read(path) for path in options.grids]
    if named is None:
        return grids
    wanted = {config.seed for config in grid.runs({"seed": named})}
    found = [[config for config in configs if config.seed in wanted] for configs in grids]
    if not any(found):
        raise ConfigError(f"seed: no run of these grids has one of {', '.join(named)}")
    return found


def _list(configs: list[RunConfig]) -> int:
    """Print what a sweep would do."""
    runs = grid.with_parents(configs)
    done = {path for path, config in runs.items() if records.find(config)}
    for path in runs:
        print("done   " if path in done else "pending", path)
    print(f"{len(runs)} runs with their parents: {len(done)} done, {len(runs) - len(done)} pending")
    return 0


def _report(outcomes: list, configs: list[RunConfig]) -> collections.Counter[str]:
    """Print how the runs of a sweep ended, failures first, then the arms of its grids.

    Returns how many runs ended in each state.
    """
    rows = []
    for outcome in sorted(outcomes, key=lambda outcome: outcome.state != "failed"):
        record = records.find(outcome.config) if outcome.finished else None
        error = record.last.test_error if record else None
        shown = "       -" if error is None else f"{error:6.2f} %"
        print(f"{outcome.state:7} {shown}  {outcome.config.path}  {outcome.reason}")
        if record and error is not None:
            rows.append(records.as_row(record))
    _print_arms(pd.DataFrame(rows), configs)
    ended = collections.Counter(outcome.state for outcome in outcomes)
    unfinished = ended["stopped"] + ended["pending"]
    again = f", {unfinished} unfinished; the same command continues them" if unfinished else ""
    print(f"{len(outcomes)} runs, {ended['failed']} failed{again}")
    return ended


def _print_arms(frame: pd.DataFrame, configs: list[RunConfig]) -> None:
    """Print the arms of these runs, if one of them has two seeds."""
    from iekd.report import arms, comparison, readme

    if len(frame) < 2:
        return
    found = comparison.arms(arms.finished(frame, configs))
    if len(found) and found["n"].max() > 1:
        print(f"\n{readme.markdown(found)}\n")


@command(
    "bundle",
    option("file", "the archive to write, for example results.tar", type=Path),
    option(
        "grids",
        "only the runs of these grid files (default: all)",
        type=Path,
        nargs="*",
        metavar="GRID",
    ),
    option(
        "--limit",
        "of weights and checkpoints at most; 0 = only records",
        type=megabytes,
        default=math.inf,
        metavar="MB",
    ),
)
def bundle(options: Options) -> None:
    """pack records, weights and checkpoints into one archive"""
    configs = [config for path in options.grids for config in grid.read(path)]
    _print_bundled(transfer.pack(options.file, configs or None, options.limit * 1e6))


def _print_bundled(contents: str) -> None:
    print(contents)
    if contents.endswith(": 0 records, 0 weights, 0 checkpoints"):
        why = "none of these runs has been started here"
        print(f"iekd: the archive is empty: {why}", file=sys.stderr)


@command("merge", option("file", type=Path))
def merge(options: Options) -> int:
    """take in an archive packed on another machine"""
    merged = transfer.merge(options.file)
    print(merged)
    return 1 if merged.conflicts else 0


@command("analyse", option("grid", GRID, type=Path))
def analyse(options: Options) -> None:
    """measure what the finished runs of a grid learned: similarity, flatness, maps, neurons"""
    students = [config for config in grid.read(options.grid) if config.student != "none"]
    skipped = []
    for config in tqdm(students, desc="analyses", unit="run"):
        if reason := metrics.impossible(config):
            skipped.append(f"skipped {config.path}: {reason}")
        else:
            metrics.analyse(config)
    done = len(students) - len(skipped)
    print(*skipped, f"{done} runs analysed, {len(skipped)} skipped", sep="\n")
