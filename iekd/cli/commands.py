"""What each command does, below its options. Every field of `RunConfig` is an option of `run`."""

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

from tqdm import tqdm

from iekd import __version__, data, records
from iekd.analysis import metrics
from iekd.cli.options import count, megabytes, seconds, spelled
from iekd.config import RunConfig, grid, known, refuse_unread
from iekd.config.fields import choices
from iekd.config.presets import PRESETS
from iekd.errors import Busy, StoreError, TrainingError
from iekd.records import store, transfer
from iekd.sweeps.sweep import sweep as run_sweep
from iekd.training import ddp, runner, signals
from iekd.training.signals import LATER

Options = argparse.Namespace
# The words of a command, its options, and the function that does it.
COMMANDS: list[tuple[str, list[tuple], Callable[[Options], int | None]]] = []
GROUPS = {"data": "list data sets, or pack one into the compact form that travels on a stick"}
ANALYSE = "then measure what it learned, as iekd analyse does, while its weights are there"
IMPORT = "a Python file with methods or measures of your own, with any command; may be repeated"
GRID = "a YAML file, for example runs/class.yaml"
# Of a run: all fields but the options of a reader's method, which have options of their own.
FIELDS = [name for name in RunConfig.model_fields if name != "options"]


def option(name: str, help: str | None = None, **settings: Any) -> tuple:
    """An argument of a command, as argparse's `add_argument` takes it."""
    return name, {"help": help, **settings}


def flag(name: str, help: str) -> tuple:
    """An option without a value."""
    return option(name, help, action="store_true")


def command(words: str, *options: tuple) -> Callable:
    """Registers the function that does a command; its docstring is the command's help."""

    def register(do: Callable[[Options], int | None]) -> Callable[[Options], int | None]:
        COMMANDS.append((words, list(options), do))
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
    groups = {"": commands}
    for words, options, do in COMMANDS:
        group, _, name = words.rpartition(" ")
        if group not in groups:
            made = commands.add_parser(group, help=GROUPS[group])
            groups[group] = made.add_subparsers(required=True, metavar="ACTION")
        one = groups[group].add_parser(name, help=do.__doc__)
        for name, settings in options + (_field_options() if do is run else []):
            one.add_argument(name, **settings)
        one.set_defaults(do=do, parser=one)
    return parser


def _field_options() -> list[tuple]:
    """One option a field of a run, and one a parameter of a reader's methods."""
    texts = dict.fromkeys(FIELDS + _own_options(), "of a method of your own")
    for name in FIELDS:
        values = ", ".join(map(str, choices(name)))
        text = f"{RunConfig.model_fields[name].description}{values and f'; one of {values}'}"
        texts[name] = text.replace("%", "%%")
    spelled = {f"--{name.replace('_', '-')}": text for name, text in texts.items()}
    return [option(name, text, metavar="VALUE") for name, text in spelled.items()]


def _own_options() -> list[str]:
    """The parameters of all methods that a reader has registered."""
    found = itertools.chain(*(row.options for row in known.methods().values()))
    return [name for name in dict.fromkeys(found) if name not in FIELDS]


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
    flag("--dry-run", "print the configuration and the path of its record, train nothing"),
    flag("--no-wait", f"leave with status {LATER} if another process trains this run"),
    flag("--analyse", ANALYSE),
    option("--import", IMPORT, metavar="FILE"),
)
def run(options: Options) -> None:
    """load, resume or train one run, its parents first"""
    config = configuration(options)
    if options.dry_run:
        print(config.model_dump_json(indent=1, exclude=config.unread()))
        print(f"hash {config.hash}\nrecord {records.record_path(config)}")
        return
    with ddp.joined() as first:
        if not first:
            return runner.follow()
        record = runner.train(config, wait=not options.no_wait)
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


# ---------------------------------------------------------------------- many runs


@command(
    "sweep",
    option("grids", GRID, type=Path, nargs="+", metavar="GRID"),
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
    flag("--dry-run", "list the runs and whether they are done"),
)
def sweep(options: Options) -> int:
    """finish all runs of grid files, those of the first file first"""
    # All grids are read before anything runs.
    grids = [grid.read(path) for path in options.grids]
    configs = list(itertools.chain(*grids))
    if options.dry_run:
        return _list(configs)
    if options.bundle:
        store.check_writable(options.bundle)

    # The runs, and what became of them.
    limits = {"jobs": options.jobs, "time_limit": options.time_limit, "pack": options.pack}
    ended = _report(run_sweep(*grids, **limits, analyse=options.analyse))
    if options.bundle:
        _print_bundled(transfer.pack(options.bundle, configs))
    signals.check()
    return LATER if ended["stopped"] + ended["pending"] else 1 if ended["failed"] else 0


def _list(configs: list[RunConfig]) -> int:
    """Print what a sweep would do."""
    runs = grid.with_parents(configs)
    done = {path for path, config in runs.items() if records.find(config)}
    for path in runs:
        print("done   " if path in done else "pending", path)
    print(f"{len(runs)} runs with their parents: {len(done)} done, {len(runs) - len(done)} pending")
    return 0


def _report(outcomes: list) -> collections.Counter[str]:
    """Print how the runs of a sweep ended; returns how many ended in each state."""
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
        why = "of these runs nothing is finished or begun here"
        print(f"iekd: the archive is empty: {why}", file=sys.stderr)


@command("merge", option("file", type=Path))
def merge(options: Options) -> int:
    """take in an archive that another machine packed"""
    merged = transfer.merge(options.file)
    print(merged)
    return 1 if merged.conflicts else 0


@command("analyse", option("grid", GRID, type=Path))
def analyse(options: Options) -> None:
    """measure what the finished runs of a grid learned: similarity, flatness"""
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
    option("--preset", default="class", choices=PRESETS),
    option(
        "--rule", "epoch whose test error is shown", default="last", choices=records.frame.RULES
    ),
    option("--format", default="markdown", choices=["markdown", "csv"]),
    flag("--readme", "write the headline table into README.md of the checkout instead"),
)
def table(options: Options) -> None:
    """arms of the record store: n, mean, spread and interval"""
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
    option("--rounds", "medians are over so many (default 5)", type=count, default=5),
    option(
        "--images",
        "images of an epoch (default: see iekd.benchmark.bench)",
        type=count,
        nargs=2,
        metavar=("CLASS", "PAPER"),
    ),
)
def bench(options: Options) -> None:
    """measure the engine beside the usual training loop, and a step of every method"""
    import pandas as pd

    from iekd.benchmark import bench

    images = options.images and dict(zip(("class", "paper"), options.images, strict=True))
    measured = bench.bench(images, options.rounds)
    for part in ("loops", "methods", "packing", "profile"):
        print(pd.DataFrame(measured[part]).to_string(index=False), end="\n\n")
    print(f"kept in {bench.save(measured)}")


@command("data list", option("--root", "look here first", type=Path))
def data_list(options: Options) -> None:
    """which data sets are at hand, and where"""
    for row in data.describe(options.root):
        print("  ".join(row))


@command(
    "data pack",
    option("name"),
    option("destination", type=Path),
    option("--root", "where the data set is now", type=Path),
)
def data_pack(options: Options) -> None:
    """write a data set as lossless sprites"""
    folder = data.pack(options.name, options.destination, options.root)
    print(f"{options.name} packed in {folder}: name its parent with IEKD_DATA to use it")


@command("doctor")
def doctor(options: Options) -> None:
    """what is installed, which data and device are found, what to do"""
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
