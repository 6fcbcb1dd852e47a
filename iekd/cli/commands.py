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

import pandas as pd
from tqdm import tqdm

from iekd import __version__, data, records
from iekd.analysis import metrics
from iekd.cli import handout
from iekd.cli.options import count, megabytes, seconds, spelled
from iekd.config import RunConfig, grid, known, refuse_unread
from iekd.config.fields import choices
from iekd.config.presets import PRESETS
from iekd.errors import Busy, ConfigError, StoreError, TrainingError
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
        for name, settings in options + (_field_options() if do in (run, sweep) else []):
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


def given_fields(options: Options) -> dict[str, str]:
    """The fields of a run that were named, as they were written."""
    given = {name: getattr(options, name) for name in [*FIELDS, *_own_options()]}
    return {name: value for name, value in given.items() if value is not None}


def configuration(options: Options) -> RunConfig:
    """The run that the options describe. One that its method does not read is refused."""
    fields = given_fields(options)
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

    # The runs, and what became of them.
    limits = {"jobs": options.jobs, "time_limit": options.time_limit, "pack": options.pack}
    ended = _report(run_sweep(*grids, **limits, analyse=options.analyse), configs)
    if options.bundle:
        _print_bundled(transfer.pack(options.bundle, configs))
    signals.check()
    return LATER if ended["stopped"] + ended["pending"] else 1 if ended["failed"] else 0


def _grids(options: Options) -> list[list[RunConfig]]:
    """The runs of each grid, of the seeds that were named; or those that the options name."""
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
    again = f", {unfinished} to go on with by the same command" if unfinished else ""
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
    option("grids", "only the runs of these grid files", type=Path, nargs="*", metavar="GRID"),
    option("--preset", "without a grid (default class)", choices=PRESETS),
    option(
        "--baseline", "add the differences to this arm of the grids, paired by seed", metavar="ARM"
    ),
    option(
        "--rule", "epoch whose test error is shown", default="last", choices=records.frame.RULES
    ),
    option("--format", default="markdown", choices=["markdown", "csv", "json"]),
    flag("--readme", "write the headline table into README.md of the checkout instead"),
)
def table(options: Options) -> None:
    """arms of the record store: n, mean, spread and interval"""
    from iekd import front
    from iekd.report import comparison, readme

    if options.grids and (options.preset or options.readme):
        raise ConfigError("preset, readme: these are for the whole store; name them without a grid")
    options.preset = options.preset or "class"
    runs = _runs(options)
    if options.readme:
        print(f"written: {readme.update_readme(runs, options.preset)}")
        return
    if options.baseline:
        # An arm may be named as in paths.
        labels = dict(zip(runs["variant"], runs["label"], strict=True))
        baseline = labels.get(options.baseline, options.baseline)
        found = front.table(runs, baseline, options.rule).reset_index()
        text = readme.compared(found, baseline)
    else:
        found = comparison.arms(runs, metric=options.rule)
        text = readme.markdown(found)
    match options.format:
        case "markdown":
            print(text)
        case "csv":
            print(found.to_csv(index=False))
        case "json":
            print(found.to_json(orient="records", indent=1))


def _runs(options: Options) -> pd.DataFrame:
    """The finished runs of grids, or of a preset. Raises `StoreError` if there are none."""
    from iekd.report import arms

    if not options.grids:
        if options.baseline:
            raise ConfigError("baseline: name the grid whose arms are compared with it")
        runs, what = records.load(preset=options.preset), f"of preset {options.preset!r}"
    else:
        configs = [config for path in options.grids for config in grid.read(path)]
        if options.baseline:
            grid.refuse_mixed(configs, "a table with a baseline")
        runs, what = arms.finished(records.load(), configs), "of these grids"
    if runs.empty:
        raise StoreError(f"there are no records {what} in {store.records_folder()}")
    return runs


@command(
    "export",
    option("file", "the CSV file to write: one row a run", type=Path),
    option("grids", "only the runs of these grid files", type=Path, nargs="*", metavar="GRID"),
    flag("--history", "one row an epoch instead: the curves"),
)
def export(options: Options) -> None:
    """write the records as one CSV file, for pandas, R or a spreadsheet"""
    from iekd.report import arms

    frame = records.load()
    if options.grids:
        configs = [config for path in options.grids for config in grid.read(path)]
        frame = arms.finished(frame, configs)
    rows = records.history(frame) if options.history else frame
    store.write_atomic(options.file, rows.to_csv(index=False).encode())
    print(f"{len(rows)} rows written to {options.file}")


@command("show", option("run", "its path, as sweeps and tables print it", metavar="RUN"))
def show(options: Options) -> None:
    """what is known of one finished run"""
    path = options.run.removesuffix(".json")
    if not (file := store.record_file(path)).exists():
        raise StoreError(f"{file}: there is no such record")
    record = records.read(file)
    print(record.config.command())
    for rule, metric in record.metrics.items():
        if metric:
            measured = metric.model_dump(exclude={"epoch"}, exclude_none=True)
            values = ", ".join(f"{name} {value:.4g}" for name, value in measured.items())
            print(f"{rule:>13}: epoch {metric.epoch}: {values}")
    facts = {"data": record.data, "parents": record.parents, "versions": record.versions}
    for name, values in {**facts, "device": record.device, "git": record.git}.items():
        print(f"{name:>13}: {', '.join(f'{key} {value}' for key, value in values.items())}")
    print(f"{'made':>13}: {record.started}, {record.seconds:g} s; weights {record.weights[:12]}")


@command(
    "handout",
    option("folder", "where the notebooks are written", type=Path),
    option("--chapters", "with commas (default: all with exercises)", default=""),
    flag("--solutions", "with the solutions, for the teacher"),
)
def hand_out(options: Options) -> None:
    """chapters for a class: without solutions, with a cell to write in below each exercise"""
    names = [name.strip() for name in options.chapters.split(",") if name.strip()]
    for path in handout.write(options.folder, names, options.solutions):
        print(path)


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
