"""What each command does, below its options. Every field of `RunConfig` is an option of `run`."""

from __future__ import annotations

import argparse
import collections
import functools
import importlib.metadata
import itertools
import math
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from iekd import __version__
from iekd.cli.options import count, megabytes, seconds, spelled
from iekd.config import RunConfig, known, refuse_unread
from iekd.config.fields import choices
from iekd.config.presets import PRESETS
from iekd.errors import Busy, StoreError, TrainingError
from iekd.training import signals
from iekd.training.signals import LATER

Options = argparse.Namespace
# The words of a command, its help, its options, and the function that does it.
COMMANDS: list[tuple[list[str], str, list[tuple], Callable[[Options], int | None]]] = []
GROUPS = {"data": "list data sets, or pack one into the compact form that travels on a stick"}
ANALYSE = "then measure what it learned, as iekd analyse does, while its weights are there"
IMPORT = "a Python file with methods or measures of your own, with any command; may be repeated"
# Of a run: all fields but the options of a reader's method, which have options of their own.
FIELDS = [name for name in RunConfig.model_fields if name != "options"]


def option(*names: str, **settings: Any) -> tuple:
    """An argument of a command, as argparse's `add_argument` takes it."""
    return names, settings


def flag(name: str, help: str) -> tuple:
    """An option without a value."""
    return option(name, action="store_true", help=help)


def command(words: str, help: str, *options: tuple) -> Callable:
    """Registers the function that does a command."""

    def register(do: Callable[[Options], int | None]) -> Callable[[Options], int | None]:
        COMMANDS.append((words.split(), help, list(options), do))
        return do

    return register


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    about = "Knowledge distillation by inheritance and exploration: runs, grids and tables."
    parser = argparse.ArgumentParser(prog="iekd", description=about)
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--import", metavar="FILE", help=IMPORT)

    # No guessing by prefix: `--ft 3` could mean another field tomorrow.
    exact = functools.partial(argparse.ArgumentParser, allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=exact)
    groups: dict[str, Any] = {}
    for words, help, options, do in COMMANDS:
        group = commands
        for name in words[:-1]:
            if name not in groups:
                made = commands.add_parser(name, help=GROUPS[name])
                groups[name] = made.add_subparsers(required=True, metavar="ACTION")
            group = groups[name]
        one = group.add_parser(words[-1], help=help)
        for names, settings in options + (_field_options() if do is run else []):
            one.add_argument(*names, **settings)
        one.set_defaults(do=do, parser=one)
    return parser


def _field_options() -> list[tuple]:
    """One option a field of a run, and one a parameter of a reader's methods."""
    found = []
    for name in FIELDS:
        values = ", ".join(map(str, choices(name)))
        text = f"{RunConfig.model_fields[name].description}{values and f'; one of {values}'}"
        found.append(option(_spell(name), metavar="VALUE", help=text.replace("%", "%%")))
    for name in _own_options():
        found.append(option(_spell(name), metavar="VALUE", help="of a method of your own"))
    return found


def _own_options() -> list[str]:
    """The parameters of all methods that a reader has registered."""
    found = itertools.chain(*(row.options for row in known.methods().values()))
    return [name for name in dict.fromkeys(found) if name not in FIELDS]


def _spell(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def configuration(options: Options) -> RunConfig:
    """The run that the options describe. One that its method does not read is refused."""
    given = {name: getattr(options, name) for name in [*FIELDS, *_own_options()]}
    fields = {name: value for name, value in given.items() if value is not None}
    config = RunConfig.create(**fields)
    refuse_unread(fields, [config])
    return config


# ---------------------------------------------------------------------- one run


@command(
    "run",
    "load, resume or train one run, its parents first",
    flag("--dry-run", "print the configuration and the path of its record, train nothing"),
    flag("--no-wait", f"leave with status {LATER} if another process trains this run"),
    flag("--analyse", ANALYSE),
    option("--import", metavar="FILE", help=IMPORT),
)
def run(options: Options) -> None:
    """`iekd run`."""
    config = configuration(options)
    from iekd import records
    from iekd.training import ddp

    if options.dry_run:
        print(config.model_dump_json(indent=1, exclude=config.unread()))
        print(f"hash {config.hash}\nrecord {records.record_path(config)}")
        return
    from iekd.training.runner import follow, train

    with ddp.joined() as first:
        record = train(config, wait=not options.no_wait) if first else follow()
    if not first:
        return
    if options.analyse:
        _measure(config)

    # What came out.
    for rule, metric in record.metrics.items():
        if metric and metric.test_error is not None:
            print(f"{rule:>13}: test error {metric.test_error:.2f} % (epoch {metric.epoch})")
        elif metric:
            print(f"{rule:>13}: test loss {metric.test_loss:.4g} (epoch {metric.epoch})")
    speed = f"[{record.seconds:.0f} s, {record.images_per_second:.0f} images/s]"
    print(f"{'record':>13}: {records.record_path(config)}  {speed}")


def _measure(config: RunConfig) -> None:
    """Analyse a run that has just ended, or say why that cannot be done."""
    from iekd.analysis import metrics

    if reason := metrics.impossible(config):
        print(f"{config.path} was not analysed: {reason}")
    else:
        metrics.analyse(config)


@command(
    "pack",
    "several runs in one process, in lock step: what `iekd sweep --pack` starts",
    option(
        "commands",
        nargs="+",
        metavar="COMMAND",
        help="each as one word: 'iekd run --method kd --seed 1'",
    ),
    flag("--analyse", ANALYSE),
)
def pack(options: Options) -> int:
    """`iekd pack`."""
    from iekd.training.runner import train_pack

    words = [spelled(shlex.split(line)[1:]) for line in options.commands]
    configs = [configuration(parser().parse_args(each)) for each in words]
    errors = []
    for config, outcome in zip(configs, train_pack(configs), strict=True):
        if isinstance(outcome, TrainingError):
            errors.append(outcome)
            print(f"iekd: {outcome}", file=sys.stderr)
        elif options.analyse:
            _measure(config)
    if not errors:
        return 0
    return LATER if all(isinstance(error, Busy) for error in errors) else 1


# ---------------------------------------------------------------------- many runs


@command(
    "sweep",
    "finish all runs of grid files, those of the first file first",
    option(
        "grids",
        type=Path,
        nargs="+",
        metavar="GRID",
        help="a YAML file, for example runs/class.yaml",
    ),
    option(
        "--jobs",
        type=count,
        default=1,
        help="processes at a time; the cores are shared out (default 1)",
    ),
    option(
        "--pack",
        type=count,
        default=1,
        metavar="N",
        help="up to N runs in a process, in lock step (default 1); for a GPU, and for many small "
        "runs on a CPU",
    ),
    option(
        "--time-limit",
        type=seconds,
        default=math.inf,
        metavar="SECONDS",
        help="then write checkpoints and leave",
    ),
    option(
        "--bundle",
        type=Path,
        metavar="FILE",
        help="at the end pack what there is into one archive, for iekd merge",
    ),
    flag("--analyse", "measure each run of the grids right after it, while its weights are there"),
    flag("--dry-run", "list the runs and whether they are done"),
)
def sweep(options: Options) -> int:
    """`iekd sweep`."""
    from iekd.config import grid
    from iekd.records import store, transfer
    from iekd.sweeps.sweep import sweep

    # All grids are read before anything runs.
    grids = [grid.read(path) for path in options.grids]
    configs = list(itertools.chain(*grids))
    if options.dry_run:
        return _list(configs)
    if options.bundle:
        store.check_writable(options.bundle)

    # The runs, and what became of them.
    limits = {"jobs": options.jobs, "time_limit": options.time_limit, "pack": options.pack}
    ended = _report(sweep(*grids, **limits, analyse=options.analyse))
    if options.bundle:
        _print_bundled(transfer.pack(options.bundle, configs))
    signals.check()
    return LATER if ended["stopped"] + ended["pending"] else 1 if ended["failed"] else 0


def _list(configs: list[RunConfig]) -> int:
    """Print what a sweep would do."""
    from iekd import records
    from iekd.config import grid

    runs = grid.with_parents(configs)
    done = 0
    for path, config in runs.items():
        is_done = records.find(config) is not None
        done += is_done
        print("done   " if is_done else "pending", path)
    print(f"{len(runs)} runs with their parents: {done} done, {len(runs) - done} pending")
    return 0


def _report(outcomes: list) -> collections.Counter[str]:
    """Print how the runs of a sweep ended; returns how many ended in each state."""
    from iekd import records

    for outcome in outcomes:
        record = records.find(outcome.config) if outcome.finished else None
        error = record.last.test_error if record else None
        shown = "       -" if error is None else f"{error:6.2f} %"
        print(f"{outcome.state:7} {shown}  {outcome.config.path}  {outcome.reason}")
    ended = collections.Counter(outcome.state for outcome in outcomes)
    unfinished = ended["stopped"] + ended["pending"]
    again = f", {unfinished} to go on with by the same command" if unfinished else ""
    print(f"{len(outcomes)} runs, {ended['failed']} failed{again}")
    return ended


@command(
    "bundle",
    "pack records, weights and checkpoints into one archive",
    option("file", type=Path, help="the archive to write, for example results.tar"),
    option(
        "grids",
        type=Path,
        nargs="*",
        metavar="GRID",
        help="only the runs of these grid files (default: all)",
    ),
    option(
        "--limit",
        type=megabytes,
        default=math.inf,
        metavar="MB",
        help="of weights and checkpoints at most; 0 = only records",
    ),
)
def bundle(options: Options) -> None:
    """`iekd bundle`."""
    from iekd.config import grid
    from iekd.records import transfer

    configs = [config for path in options.grids for config in grid.read(path)]
    _print_bundled(transfer.pack(options.file, configs or None, options.limit * 1e6))


def _print_bundled(contents: str) -> None:
    print(contents)
    if contents.endswith(": 0 records, 0 weights, 0 checkpoints"):
        print(
            "iekd: the archive is empty: of these runs nothing is finished or begun here",
            file=sys.stderr,
        )


@command("merge", "take in an archive that another machine packed", option("file", type=Path))
def merge(options: Options) -> int:
    """`iekd merge`."""
    from iekd.records import transfer

    merged = transfer.merge(options.file)
    print(merged)
    return 1 if merged.conflicts else 0


@command(
    "analyse",
    "measure what the finished runs of a grid learned: similarity, flatness",
    option("grid", type=Path, help="a YAML file, for example runs/class.yaml"),
)
def analyse(options: Options) -> None:
    """`iekd analyse`."""
    from tqdm import tqdm

    from iekd.analysis import metrics
    from iekd.config import grid

    students = [config for config in grid.read(options.grid) if config.student != "none"]
    skipped = []
    for config in tqdm(students, desc="analyses", unit="run"):
        if reason := metrics.impossible(config):
            skipped.append(f"skipped {config.path}: {reason}")
        else:
            metrics.analyse(config)
    done = len(students) - len(skipped)
    print(*skipped, f"{done} runs analysed, {len(skipped)} skipped", sep="\n")


# ---------------------------------------------------------------------- what there is


@command(
    "table",
    "arms of the record store: n, mean, spread and interval",
    option("--preset", default="class", choices=PRESETS),
    option(
        "--rule",
        default="last",
        choices=["last", "val_selected", "best_on_test"],
        help="epoch whose test error is shown",
    ),
    option("--format", default="markdown", choices=["markdown", "csv"]),
    flag("--readme", "write the headline table into README.md of the checkout instead"),
)
def table(options: Options) -> None:
    """`iekd table`."""
    from iekd import records
    from iekd.records import store
    from iekd.report import comparison, readme

    frame = records.load(preset=options.preset)
    if frame.empty:
        raise StoreError(
            f"there are no records of preset {options.preset!r} in {store.records_folder()}"
        )
    if options.readme:
        print(f"written: {readme.update_readme(frame, options.preset)}")
        return
    arms = comparison.arms(frame, metric=options.rule)
    print(readme.markdown(arms) if options.format == "markdown" else arms.to_csv(index=False))


@command(
    "bench",
    "measure the engine beside the usual training loop, and a step of every method",
    option("--rounds", type=count, default=5, help="medians are over so many (default 5)"),
    option(
        "--images",
        type=count,
        nargs=2,
        metavar=("CLASS", "PAPER"),
        help="images of an epoch (default: see iekd.benchmark.bench)",
    ),
)
def bench(options: Options) -> None:
    """`iekd bench`."""
    import pandas as pd

    from iekd.benchmark import bench

    images = options.images and dict(zip(("class", "paper"), options.images, strict=True))
    measured = bench.bench(images, options.rounds)
    for part in ("loops", "methods", "packing", "profile"):
        print(pd.DataFrame(measured[part]).to_string(index=False), end="\n\n")
    print(f"kept in {bench.save(measured)}")


@command(
    "data list",
    "which data sets are at hand, and where",
    option("--root", type=Path, help="look here first"),
)
def data_list(options: Options) -> None:
    """`iekd data list`."""
    from iekd import data

    for row in data.describe(options.root):
        print("  ".join(row))


@command(
    "data pack",
    "write a data set as lossless sprites",
    option("name"),
    option("destination", type=Path),
    option("--root", type=Path, help="where the data set is now"),
)
def data_pack(options: Options) -> None:
    """`iekd data pack`."""
    from iekd import data

    folder = data.pack(options.name, options.destination, options.root)
    print(f"{options.name} packed in {folder}: name its parent with IEKD_DATA to use it")


@command("doctor", "what is installed, which data and device are found, what to do")
def doctor(options: Options) -> None:
    """`iekd doctor`."""
    from iekd import data, records
    from iekd.records import store

    found = records.provenance()
    device, commit = found["device"], found["git"]["commit"] or "unknown"
    print(f"python {found['versions']['python']}, iekd {__version__}, commit {commit}")
    print(f"device: {device['type']}, {device['name']}, {device['threads']} threads")
    for package in ("torch", "torchvision", "pydantic", "safetensors", "jupyter-book", "papermill"):
        try:
            print(f"  {package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"  {package} is missing: pip install -e '.[book]'")
    folder = store.records_folder()
    print(f"records: {len(records.files(folder))} in {folder}")
    print("data sets:")
    for row in data.describe():
        print("  " + "  ".join(row))
