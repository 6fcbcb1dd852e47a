"""The records as a table: one row per run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from iekd.config import RunConfig
from iekd.config.fields import choices
from iekd.data import is_own
from iekd.errors import ConfigError, StoreError, did_you_mean
from iekd.records import store
from iekd.records.analyses import analysis_of
from iekd.records.record import Record, files, read

# The columns after the fields of the configuration, in this order.
OF_RUN = ("hash", "path", "variant", "pair", "command")
OF_MACHINE = ("seconds", "images_per_second", "device", "threads", "torch")
RULES = ("last", "val_selected", "best_on_test")
OF_RULE = ("", "_epoch", "_exact")
OF_LAST = ("last_validation", "last_loss", "last_train")


def load(folder: Path | str | None = None, **where: Any) -> pd.DataFrame:
    """All records below a folder as a frame, one row per run, sorted by path.

    Without a `folder`: those of the store and, where $IEKD_RUNS names it, of the checkout as well,
    so that a class that shares a store still sees the evidence. The store takes precedence.

    Columns: the fields of the configuration; hash, path, variant, pair, command; seconds,
    images_per_second, device, threads, torch (its version); for each selection rule (last,
    val_selected, best_on_test) the test error in percent, `<rule>_epoch` and `<rule>_exact`;
    last_validation, last_loss, last_train. Analysed runs add the metrics of
    `iekd.analysis.metrics` and, where a second training was measured in place of lost weights, its
    test error `last_again`.

    Args:
        where: columns with the value, or list of values, of the rows to keep.

    Raises:
        StoreError: a file is not a valid record, or is a misplaced copy, which would count twice.
        ConfigError: no record has such a column or value.
    """
    presets = where.get("preset", get_args(RunConfig.model_fields["preset"].annotation))
    rows = {}
    if folder is None and (evidence := store.evidence_folder()):
        rows = _rows(evidence, set(_listed(presets)) - {"smoke"})
    rows |= _rows(Path(folder or store.records_folder()), set(_listed(presets)))
    frame = pd.DataFrame([rows[path] for path in sorted(rows)], columns=None if rows else columns())

    # Keep the requested rows.
    for column, value in where.items():
        values = _listed(value)
        _check_asked(column, values, frame)
        frame = frame[frame[column].isin(values)]
    return frame.reset_index(drop=True)


def _rows(folder: Path, presets: set[str]) -> dict[Path, dict[str, Any]]:
    """The rows of the records of some presets, by file below a folder."""
    rows = {}
    for path in files(folder):
        name = path.relative_to(folder)
        if name.parts[0] in presets:
            rows[name] = _row(path, folder)
    return rows


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple, set)) else [value]


def columns() -> list[str]:
    """The columns of every frame, as `as_row` fills them."""
    of_rules = [f"{rule}{suffix}" for rule in RULES for suffix in OF_RULE]
    return [*RunConfig.model_fields, *OF_RUN, *OF_MACHINE, *of_rules, *OF_LAST]


def as_row(record: Record) -> dict[str, Any]:
    """The columns of a record, without those of its analysis."""
    config, device, last = record.config, record.device, record.last
    values = [*config.model_dump().values()]
    values += [record.hash, config.path, config.variant, config.pair, config.command()]
    values += [record.seconds, record.images_per_second, device["name"], device["threads"]]
    values += [record.versions["torch"].partition("+")[0]]
    for rule in RULES:
        metric = record.metrics[rule]
        known = metric and (metric.test_error, metric.epoch, metric.test_error_exact)
        values += known or (None, None, None)
    values += [last.validation_error, last.test_loss, last.train_eval_error]
    return dict(zip(columns(), values, strict=True))


def history(frame: pd.DataFrame, folder: Path | None = None) -> pd.DataFrame:
    """Learning curves of a frame's runs: one row per run and epoch, with path, variant, seed."""
    parts = []
    for path, variant, seed in zip(frame["path"], frame["variant"], frame["seed"], strict=True):
        file = folder / f"{path}.json" if folder else store.record_file(path)
        curves = pd.DataFrame(read(file).history)
        epochs = range(1, len(curves) + 1)
        parts.append(curves.assign(epoch=epochs, path=path, variant=variant, seed=seed))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _row(path: Path, folder: Path) -> dict[str, Any]:
    """A row with its analysis. Raises `StoreError` for a record in another's place."""
    record = read(path)
    if path != (place := folder / f"{record.config.path}.json"):
        raise StoreError(f"{path} is the record of {place}. Remove the copy, or move it back.")
    row = as_row(record)
    if found := analysis_of(record, folder):
        analysis, training = found
        row |= analysis.metrics
        if training is not record:
            row["last_again"] = training.last.test_error
    return row


def _check_asked(column: str, values: Sequence[Any], frame: pd.DataFrame) -> None:
    """Refuse what no record can have: an empty answer would look like a result."""
    if column not in frame:
        hint = did_you_mean(column, frame.columns)
        raise ConfigError(f"{column}: the records have no such column{hint}")
    allowed = choices(column) if column in RunConfig.model_fields else ()
    known = {*allowed, *frame[column]} if allowed else set()
    for value in values:
        if allowed and value not in known and not (column == "dataset" and is_own(value)):
            listed = ", ".join(map(str, allowed))
            raise ConfigError(f"{column}: {value!r} is not usable; choose one of {listed}")
