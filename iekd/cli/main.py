"""The command line: run, pack, sweep, bundle, merge, analyse, table, bench, data, doctor.

Every field of `RunConfig` is an option of `iekd run`.
"""

from __future__ import annotations

import argparse
import collections
import functools
import importlib.metadata
import itertools
import math
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from iekd import __version__
from iekd.cli import output
from iekd.cli.options import count, megabytes, refuse, seconds, spelled
from iekd.config import RunConfig, refuse_unread
from iekd.config.presets import PRESETS
from iekd.errors import ConfigError
from iekd.training import signals
from iekd.training.signals import LATER

ANALYSE = "then measure what it learned, as iekd analyse does, while its weights are there"

if TYPE_CHECKING:
    from iekd.sweeps.sweep import Outcome


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 failed with a message on standard error, 2 a wrong option, 75 (EX_TEMPFAIL) not finished though nothing
    is wrong, 128 + number stopped by a signal (143 SIGTERM, 130 Ctrl-C). After the last two the same command goes on."""
    with output.kept() as printed:
        try:
            status = _command(arguments)
        except SystemExit as left:  # argparse: its help, or a wrong option
            status = left.code
    if (lost := printed.error) is None or lost.errno in output.GONE:
        return status
    print(f"iekd: what was to be printed is lost: {lost.strerror}", file=sys.stderr)
    return status or 1


def _command(arguments: list[str] | None) -> int:
    with signals.on_signals():
        try:
            options, unknown = parser().parse_known_args(
                spelled(sys.argv[1:] if arguments is None else arguments)
            )
            if unknown:
                refuse(options.parser, unknown)
            return _do(options)
        except signals.Stopped as stopped:
            print(
                f"iekd: stopped by {stopped}; the same command goes on from the last checkpoint",
                file=sys.stderr,
            )
            return stopped.status


def _do(options: argparse.Namespace) -> int:
    from iekd.errors import Busy, DataError, TrainingError
    from iekd.records import store
    from iekd.training import parallel

    try:
        if options.do is not _run and parallel.launched() > 1:
            raise ConfigError(
                "torchrun is for iekd run, one run on several processes; start this command without it"
            )
        return options.do(options) or 0
    except Busy as busy:
        print(f"iekd: {busy}", file=sys.stderr)
        return LATER
    except (ConfigError, DataError, TrainingError, store.StoreError) as error:
        print(f"iekd: {error}", file=sys.stderr)
        return 1


def parser() -> argparse.ArgumentParser:
    """All commands; the options of each stand above the function that does it."""
    parser = argparse.ArgumentParser(
        prog="iekd",
        description="Knowledge distillation by inheritance and exploration: runs, grids and tables.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    exact = functools.partial(
        argparse.ArgumentParser, allow_abbrev=False
    )  # no guessing: `--ft 3` could mean another field tomorrow
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=exact)
    for add in (
        _run_options,
        _pack_options,
        _sweep_options,
        _bundle_options,
        _merge_options,
        _analyse_options,
        _table_options,
        _bench_options,
        _data_options,
        _doctor_options,
    ):
        add(commands)
    return parser


def configuration(options: argparse.Namespace) -> RunConfig:
    """The run that the options of `iekd run` describe. An option that its method does not read is refused."""
    fields = {
        name: value
        for name in RunConfig.model_fields
        if (value := getattr(options, name)) is not None
    }
    config = RunConfig.create(**fields)
    refuse_unread(fields, [config])
    return config


# ---------------------------------------------------------------------- the commands, each below its options


def _run_options(commands: Any) -> None:
    run = commands.add_parser("run", help="load, resume or train one run, its parents first")
    run.add_argument(
        "--dry-run",
        action="store_true",
        help="print the configuration and the path of its record, train nothing",
    )
    run.add_argument(
        "--no-wait",
        action="store_true",
        help=f"leave with status {LATER} if another process trains this run",
    )
    run.add_argument("--analyse", action="store_true", help=ANALYSE)
    for name, field in RunConfig.model_fields.items():
        choices = (
            f"; one of {', '.join(map(str, get_args(field.annotation)))}"
            if get_args(field.annotation)
            else ""
        )
        run.add_argument(
            f"--{name.replace('_', '-')}",
            metavar="VALUE",
            help=f"{field.description}{choices}".replace("%", "%%"),
        )
    run.set_defaults(do=_run, parser=run)


def _run(options: argparse.Namespace) -> None:
    config = configuration(options)
    from iekd import records
    from iekd.training import parallel

    if options.dry_run:
        read = config.model_dump_json(indent=1, exclude=config.unread())
        print(read, f"hash {config.hash}", f"record {records.record_path(config)}", sep="\n")
        return
    from iekd.training.runner import train

    with parallel.joined() as first:
        record = train(config, wait=not options.no_wait)
    if not first:
        return
    if options.analyse:
        _measure(config)
    metrics = {rule: metric for rule, metric in record.metrics.items() if metric}
    for rule, metric in metrics.items():
        value = (
            f"test error {metric.test_error:.2f} %"
            if metric.test_error is not None
            else f"test loss {metric.test_loss:.4g}"
        )
        print(f"{rule:>13}: {value} (epoch {metric.epoch})")
    print(
        f"{'record':>13}: {records.record_path(config)}  [{record.seconds:.0f} s, {record.images_per_second:.0f} images/s]"
    )


def _measure(config: RunConfig) -> None:
    """Analyse a run that has just ended, while its weights are there, or say why that cannot be done."""
    from iekd.analysis import metrics

    if reason := metrics.impossible(config):
        print(f"{config.path} was not analysed: {reason}")
    else:
        metrics.analyse(config)


def _pack_options(commands: Any) -> None:
    pack = commands.add_parser(
        "pack", help="several runs in one process, in lock step: what `iekd sweep --pack` starts"
    )
    pack.add_argument(
        "commands",
        nargs="+",
        metavar="COMMAND",
        help="each as one word: 'iekd run --method kd --seed 1'",
    )
    pack.add_argument("--analyse", action="store_true", help=ANALYSE)
    pack.set_defaults(do=_pack, parser=pack)


def _pack(options: argparse.Namespace) -> int:
    from iekd.errors import Busy, TrainingError
    from iekd.training.runner import train_pack

    given = [parser().parse_args(spelled(shlex.split(command)[1:])) for command in options.commands]
    configs = [configuration(each) for each in given]
    outcomes = train_pack(configs)
    if options.analyse:
        for config, outcome in zip(configs, outcomes, strict=True):
            if not isinstance(outcome, TrainingError):
                _measure(config)
    errors = [outcome for outcome in outcomes if isinstance(outcome, TrainingError)]
    for error in errors:
        print(f"iekd: {error}", file=sys.stderr)
    return 0 if not errors else LATER if all(isinstance(error, Busy) for error in errors) else 1


def _sweep_options(commands: Any) -> None:
    sweep = commands.add_parser(
        "sweep", help="finish all runs of grid files, those of the first file first"
    )
    sweep.add_argument(
        "grids",
        type=Path,
        nargs="+",
        metavar="GRID",
        help="a YAML file, for example runs/class.yaml",
    )
    sweep.add_argument(
        "--jobs",
        type=count,
        default=1,
        help="processes at a time; the cores are shared out (default 1)",
    )
    pack = "up to N runs in a process, in lock step (default 1); for a GPU, and for many small runs on a CPU"
    sweep.add_argument("--pack", type=count, default=1, metavar="N", help=pack)
    sweep.add_argument(
        "--time-limit",
        type=seconds,
        default=math.inf,
        metavar="SECONDS",
        help="then write checkpoints and leave",
    )
    sweep.add_argument(
        "--bundle",
        type=Path,
        metavar="FILE",
        help="at the end pack what there is into one archive, for iekd merge",
    )
    sweep.add_argument(
        "--analyse",
        action="store_true",
        help="measure each run of the grids right after it, while its weights are there",
    )
    sweep.add_argument(
        "--dry-run", action="store_true", help="list the runs and whether they are done"
    )
    sweep.set_defaults(do=_sweep, parser=sweep)


def _sweep(options: argparse.Namespace) -> int:
    from iekd.config import grid
    from iekd.records import store, transfer
    from iekd.sweeps.sweep import sweep

    grids = [grid.read(path) for path in options.grids]  # all of them, before anything runs
    configs = list(itertools.chain(*grids))
    if options.dry_run:
        return _list(configs)
    if options.bundle:
        store.check_writable(options.bundle)
    ended = _report(
        sweep(
            *grids,
            jobs=options.jobs,
            time_limit=options.time_limit,
            pack=options.pack,
            analyse=options.analyse,
        )
    )
    if options.bundle:
        _print_bundled(transfer.pack(options.bundle, configs))
    signals.check()
    return LATER if ended["stopped"] + ended["pending"] else 1 if ended["failed"] else 0


def _list(configs: list[RunConfig]) -> int:
    """What a sweep would do."""
    from iekd import records
    from iekd.config import grid

    done = {path: bool(records.find(config)) for path, config in grid.with_parents(configs).items()}
    for path, is_done in done.items():
        print("done   " if is_done else "pending", path)
    print(
        f"{len(done)} runs with their parents: {sum(done.values())} done, {len(done) - sum(done.values())} pending"
    )
    return 0


def _report(outcomes: list[Outcome]) -> collections.Counter[str]:
    """Print how the runs of a sweep ended; returns how many ended in each state."""
    from iekd import records

    for outcome in outcomes:
        record = records.find(outcome.config) if outcome.finished else None
        error = record.metrics["last"].test_error if record else None
        print(
            f"{outcome.state:7} {f'{error:6.2f} %' if error is not None else '       -'}  {outcome.config.path}  {outcome.reason}"
        )
    ended = collections.Counter(outcome.state for outcome in outcomes)
    unfinished = ended["stopped"] + ended["pending"]
    again = f", {unfinished} to go on with by the same command" if unfinished else ""
    print(f"{len(outcomes)} runs, {ended['failed']} failed{again}")
    return ended


def _bundle_options(commands: Any) -> None:
    bundle = commands.add_parser(
        "bundle", help="pack records, weights and checkpoints into one archive"
    )
    bundle.add_argument("file", type=Path, help="the archive to write, for example results.tar")
    bundle.add_argument(
        "grids",
        type=Path,
        nargs="*",
        metavar="GRID",
        help="only the runs of these grid files (default: all)",
    )
    bundle.add_argument(
        "--limit",
        type=megabytes,
        default=math.inf,
        metavar="MB",
        help="of weights and checkpoints at most; 0 = only records",
    )
    bundle.set_defaults(do=_bundle, parser=bundle)


def _bundle(options: argparse.Namespace) -> None:
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


def _merge_options(commands: Any) -> None:
    merge = commands.add_parser("merge", help="take in an archive that another machine packed")
    merge.add_argument("file", type=Path)
    merge.set_defaults(do=_merge, parser=merge)


def _merge(options: argparse.Namespace) -> int:
    from iekd.records import transfer

    merged = transfer.merge(options.file)
    print(merged)
    return 1 if merged.conflicts else 0


def _analyse_options(commands: Any) -> None:
    analyse = commands.add_parser(
        "analyse", help="measure what the finished runs of a grid learned: similarity, flatness"
    )
    analyse.add_argument("grid", type=Path, help="a YAML file, for example runs/class.yaml")
    analyse.set_defaults(do=_analyse, parser=analyse)


def _analyse(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from iekd.analysis import metrics
    from iekd.config import grid

    done, skipped = 0, []
    for config in tqdm(
        [c for c in grid.read(options.grid) if c.student != "none"], desc="analyses", unit="run"
    ):
        if reason := metrics.impossible(config):
            skipped.append(f"skipped {config.path}: {reason}")
        else:
            metrics.analyse(config)
            done += 1
    print(*skipped, f"{done} runs analysed, {len(skipped)} skipped", sep="\n")


def _table_options(commands: Any) -> None:
    table = commands.add_parser(
        "table", help="arms of the record store: n, mean, spread and interval"
    )
    table.add_argument("--preset", default="class", choices=PRESETS)
    table.add_argument(
        "--rule",
        default="last",
        choices=["last", "val_selected", "best_on_test"],
        help="epoch whose test error is shown",
    )
    table.add_argument("--format", default="markdown", choices=["markdown", "csv"])
    table.add_argument(
        "--readme",
        action="store_true",
        help="write the headline table into README.md of the checkout instead",
    )
    table.set_defaults(do=_table, parser=table)


def _table(options: argparse.Namespace) -> None:
    from iekd import records
    from iekd.records import store
    from iekd.report import comparison, readme

    frame = records.load(preset=options.preset)
    if frame.empty:
        raise store.StoreError(
            f"there are no records of preset {options.preset!r} in {store.records_folder()}"
        )
    if options.readme:
        print(f"written: {readme.update_readme(frame, options.preset)}")
        return
    arms = comparison.arms(frame, metric=options.rule)
    arms["label"] = arms["label"].str.replace(
        "Student alone", "Trained alone"
    )  # in a whole store it may be a teacher
    print(readme.markdown(arms) if options.format == "markdown" else arms.to_csv(index=False))


def _bench_options(commands: Any) -> None:
    bench = commands.add_parser(
        "bench",
        help="measure the engine beside the usual training loop, and a step of every method",
    )
    bench.add_argument(
        "--rounds", type=count, default=5, help="medians are over so many (default 5)"
    )
    bench.add_argument(
        "--images",
        type=count,
        nargs=2,
        metavar=("CLASS", "PAPER"),
        help="images of an epoch (default: see iekd.benchmark.bench)",
    )
    bench.set_defaults(do=_bench, parser=bench)


def _bench(options: argparse.Namespace) -> None:
    import pandas as pd

    from iekd.benchmark import bench

    measured = bench.bench(
        dict(zip(("class", "paper"), options.images, strict=True)) if options.images else None,
        options.rounds,
    )
    for part in ("loops", "methods", "packing", "profile"):
        print(pd.DataFrame(measured[part]).to_string(index=False), end="\n\n")
    print(f"kept in {bench.save(measured)}")


def _data_options(commands: Any) -> None:
    data = commands.add_parser(
        "data", help="list data sets, or pack one into the compact form that travels on a stick"
    )
    actions = data.add_subparsers(required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="which data sets are at hand, and where")
    listing.add_argument("--root", type=Path, help="look here first")
    listing.set_defaults(do=_data_list, parser=listing)
    pack = actions.add_parser("pack", help="write a data set as lossless sprites")
    pack.add_argument("name")
    pack.add_argument("destination", type=Path)
    pack.add_argument("--root", type=Path, help="where the data set is now")
    pack.set_defaults(do=_data_pack, parser=pack)


def _data_list(options: argparse.Namespace) -> None:
    from iekd import data

    for row in data.describe(options.root):
        print("  ".join(map(str, row)))


def _data_pack(options: argparse.Namespace) -> None:
    from iekd import data

    folder = data.pack(options.name, options.destination, options.root)
    print(f"{options.name} packed in {folder}: name its parent with IEKD_DATA to use it")


def _doctor_options(commands: Any) -> None:
    doctor = commands.add_parser(
        "doctor", help="what is installed, which data and device are found, what to do"
    )
    doctor.set_defaults(do=_doctor, parser=doctor)


def _doctor(options: argparse.Namespace) -> None:
    from iekd import data, records
    from iekd.records import store

    provenance = records.provenance()
    print(
        f"python {provenance['versions']['python']}, iekd {__version__}, commit {provenance['git']['commit'] or 'unknown'}"
    )
    print(
        f"device: {provenance['device']['type']}, {provenance['device']['name']}, {provenance['device']['threads']} threads"
    )
    for package in ("torch", "torchvision", "pydantic", "safetensors", "jupyter-book", "papermill"):
        try:
            print(f"  {package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"  {package} is missing: pip install -e '.[book]'")
    folder = store.records_folder()
    print(f"records: {len(records.files(folder))} in {folder}")
    print("data sets:")
    for row in data.describe():
        print("  " + "  ".join(map(str, row)))
