"""The commands that show finished runs: a table, a CSV file, one record."""

from pathlib import Path

import pandas as pd

from iekd import records
from iekd.cli.parser import Options, command, flag, option
from iekd.config import grid
from iekd.config.presets import PRESETS
from iekd.errors import ConfigError, StoreError, file_beside
from iekd.records import store


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


@command("show", option("run", "its path, as tables print it, or its file", metavar="RUN"))
def show(options: Options) -> None:
    """what is known about one finished run"""
    file = Path(options.run)
    if not file.is_file():
        file = store.record_file(options.run.removesuffix(".json"))
    named = "/".join(file.absolute().parts[-2:])
    if not records.is_place(named, ".json") or not store.exists(file):
        raise StoreError(f"{file}: there is no such record{file_beside(file)}")
    record = records.read(file)
    print(record.config.command())
    for rule, metric in record.metrics.items():
        if metric:
            measured = metric.model_dump(exclude={"epoch"}, exclude_none=True)
            shown = ", ".join(f"{name} {value:.4g}" for name, value in measured.items())
            print(f"{rule:>13}: epoch {metric.epoch}: {shown}")
    for name in ("data", "parents", "versions", "device", "git"):
        facts = getattr(record, name).items()
        print(f"{name:>13}: {', '.join(f'{key} {value}' for key, value in facts)}")
    print(f"{'made':>13}: {record.started}, {record.seconds:g} s; weights {record.weights[:12]}")
