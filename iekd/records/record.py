"""The evidence: one small JSON file per finished run, at a path that can be guessed from the configuration.

`runs/records/<preset>/<dataset>/<teacher>-<student>/<method>[-<field>=<value>...]/seed<k>.json`

What was measured on the trained weights afterwards (`iekd analyse`) lies beside it in `seed<k>.analysis.json`. Runs whose weights were
not kept can be trained again for that, in a store of its own (`runs/again`): their records stay as they are.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict

from iekd.config import RunConfig
from iekd.config.hints import did_you_mean
from iekd.errors import ConfigError
from iekd.records import store

SCHEMA = 1
ANALYSIS = ".analysis.json"  # what an analysis is called where the record is '.json'
# A run's path, `RunConfig.path`. Nothing hidden, no copy that an editor, a desktop or a synchronisation made, no '..'.
PLACE = re.compile(r"(\w[\w=.+-]*/)+seed(0|[1-9][0-9]*)")


class Metric(BaseModel):
    """The state of the run at one epoch (counted from 1). Errors in percent; None for an auto-encoder, which has no labels."""

    epoch: int
    test_error: float | None
    test_error_exact: float | None = None  # without the test images known to be recompressed copies
    validation_error: float | None = None
    test_loss: float | None = None
    train_eval_error: float | None = (
        None  # on the training images in evaluation mode, not augmented; last epoch only
    )


class Record(BaseModel):
    """What a finished run leaves behind. Written once, atomically, by `train`; never edited by hand."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA
    config: RunConfig
    hash: str
    parents: dict[str, str]  # role -> checksum of the parent's weights
    weights: str  # checksum of this run's weights
    git: dict[str, Any]
    versions: dict[str, str]
    device: dict[str, Any]
    started: str
    seconds: float
    images_per_second: float
    data: dict[str, str]
    loss_digest: str | None = (
        None  # of the code that computed the loss (iekd.training.digest); None in older records
    )
    history: dict[str, list[float | None]]
    metrics: dict[
        str, Metric | None
    ]  # last, val_selected, best_on_test (biased: chosen on test data)

    def save(self) -> None:
        store.write_atomic(
            record_path(self.config), (json.dumps(self.to_json(), indent=1) + "\n").encode()
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data with the key `schema` first and histories rounded to seven significant digits."""
        data = self.model_dump()
        data["history"] = {k: [_rounded(v) for v in values] for k, values in self.history.items()}
        return {"schema": data.pop("schema_version"), **data}


class Analysis(BaseModel):
    """What `iekd.analysis.metrics` measured on the weights of a finished run. Written atomically; made again when the weights change."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA
    hash: str  # of the configuration
    weights: str  # checksum of the weights it was computed from
    parents: dict[str, str]  # role -> checksum of the weights that the run was compared with
    git: dict[str, Any]
    versions: dict[str, str]
    metrics: dict[str, float | None]  # the columns it adds to the frame of records
    noise: dict[str, list[float]]  # one list per column, one row per sigma and draw

    def save(self, config: RunConfig) -> None:
        data = self.model_dump()
        data["metrics"] = {name: _rounded(value) for name, value in self.metrics.items()}
        data["noise"] = {name: [_rounded(v) for v in values] for name, values in self.noise.items()}
        content = json.dumps({"schema": data.pop("schema_version"), **data}, indent=1)
        store.write_atomic(analysis_path(config), (content + "\n").encode())


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.7g}")


def record_path(config: RunConfig) -> Path:
    return store.records_folder() / f"{config.path}.json"


def analysis_path(config: RunConfig) -> Path:
    return store.records_folder() / f"{config.path}{ANALYSIS}"


def is_place(name: str, *ends: str) -> bool:
    """Whether a file of this name, below the folder of records or the cache, is that of a run: its path, and one of these suffixes."""
    return any(name.endswith(end) and PLACE.fullmatch(name.removesuffix(end)) for end in ends)


def files(folder: Path, end: str = ".json") -> list[Path]:
    """The records below a folder (or what else of runs has this suffix), sorted. What only looks like one is passed over, and named."""
    named = {
        path.relative_to(folder).as_posix(): path
        for path in store.walk(folder)
        if path.name.endswith(end)
    }
    pass_over([path for name, path in named.items() if not is_place(name, end, ANALYSIS)])
    return sorted(path for name, path in named.items() if is_place(name, end))


def pass_over(strays: Sequence[Path | str]) -> None:
    """Say, once for each file, that it counts for nothing."""
    new = sorted(str(stray) for stray in strays if str(stray) not in _passed_over)
    _passed_over.update(new)
    if new:
        more = f" and {len(new) - 3} more" if len(new) > 3 else ""
        print(
            f"iekd: passed over, not the file of a run at its place: {', '.join(new[:3])}{more}",
            file=sys.stderr,
        )


_passed_over: set[str] = set()


def weights_paths(config: RunConfig) -> list[Path]:
    """Where a run's weights may lie: committed beside its record, or in the cache of this machine."""
    return [
        folder / f"{config.path}.safetensors"
        for folder in (store.records_folder(), store.cache_folder())
    ]


def weights_at_hand(config: RunConfig) -> Path | None:
    """The weights file of a finished run. Only a file that the record vouches for counts."""
    record = find(config)
    known = [
        path
        for path in weights_paths(config)
        if record and store.stored_checksum(path) == record.weights
    ]
    return known[0] if known else None


def _plain(path: Path) -> dict[str, Any]:
    """The content of a JSON file of this schema, without the key `schema`."""
    data = json.loads(path.read_text(encoding="utf-8"))
    if data.pop("schema") != SCHEMA:
        raise ValueError(f"schema is not {SCHEMA}: a different version of iekd wrote it")
    return data


def read(path: Path) -> Record:
    """A record from its file. Raises `StoreError` when the file is no valid record."""
    try:
        record = Record.model_validate(_plain(path), context={"finished": True})
        if record.hash != record.config.hash:
            raise ValueError("its configuration does not match its hash: it was edited")
    except PermissionError as error:
        raise store.cannot_read(path, error) from error
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise store.StoreError(
            f"{path} is not a valid record ({error}). Restore it from git, or delete it and run it again."
        ) from error
    return record


def read_analysis(path: Path, record: Record) -> Analysis | None:
    """The analysis of a record from its file, None if there is none or the record has other weights by now.

    Raises `StoreError` when the file is no valid analysis.
    """
    if not store.exists(path):
        return None
    try:
        analysis = Analysis(**_plain(path))
    except PermissionError as error:
        raise store.cannot_read(path, error) from error
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise store.StoreError(
            f"{path} is not a valid analysis ({error}). Delete it and run `iekd analyse` again."
        ) from error
    return analysis if (analysis.hash, analysis.weights) == (record.hash, record.weights) else None


def again_folder(folder: Path) -> Path:
    """Where second trainings of the runs of a records folder lie: 'runs/again/records' beside 'runs/records'."""
    return folder.parent / "again" / folder.name


def analysis_of(record: Record, folder: Path | None = None) -> tuple[Analysis, Record] | None:
    """What was measured on a run's weights, and the training that they are from: the record itself or, where its weights were not kept
    and it was trained again to be measured, the record of that training. None if there is nothing."""
    folder = folder or store.records_folder()
    first, second = (
        place / f"{record.config.path}.json" for place in (folder, again_folder(folder))
    )
    if analysis := read_analysis(first.with_suffix(ANALYSIS), record):
        return analysis, record
    if not store.exists(second) or (again := read(second)).hash != record.hash:
        return None
    analysis = read_analysis(second.with_suffix(ANALYSIS), again)
    return (analysis, again) if analysis else None


def find(config: RunConfig) -> Record | None:
    """The finished record of a configuration, if there is one."""
    path = record_path(config)
    if not store.exists(path):
        return None
    record = read(path)
    if record.hash != config.hash:
        raise store.StoreError(
            f"{path} holds another run ({record.hash}, not {config.hash}). Move it away, or restore it from git."
        )
    return record


def orphans(parent: Record) -> list[str]:
    """Paths of the finished runs that learned from other weights of this run than those of `parent`."""
    folder = (
        store.records_folder() / parent.config.preset / parent.config.dataset
    )  # parents and children have both in common
    networks = set(parent.config.pair.split("-"))
    found = [
        read(path)
        for path in files(folder)
        if networks <= set(path.relative_to(folder).parts[0].split("-"))
    ]
    return [record.config.path for record in found if _learned_elsewhere(record, parent)]


def _learned_elsewhere(record: Record, parent: Record) -> bool:
    roles = [role for role, config in record.config.parents().items() if config == parent.config]
    return any(record.parents.get(role, parent.weights) != parent.weights for role in roles)


def load(folder: Path | None = None, **where: Any) -> pd.DataFrame:
    """All records below a folder as a frame, one row a run, sorted by path.

    Columns: every field of the configuration, `hash`, `path`, `variant`, `pair`, `command`, `seconds`, `images_per_second`, `device`,
    `threads`, and per selection rule `last`, `val_selected`, `best_on_test` (test error, percent), with `<rule>_epoch` and `<rule>_exact`.
    Where runs have been analysed, also the metrics of `iekd.analysis.metrics` (NaN for the others), and `last_again`: the last test error of the
    second training that was measured in place of a run whose weights were not kept.
    Keyword arguments keep the rows whose column has that value (or is in that list). Raises `StoreError` for a file that is no valid
    record, and for a copy of a record at another place: it would count twice; `ConfigError` for a column or a value that cannot be.
    """
    folder = Path(folder or store.records_folder())
    rows = []
    for path in files(folder):
        record = _read_at_its_place(path, folder)
        rows.append(as_row(record) | _measured(record, folder))
    frame = pd.DataFrame(rows, columns=None if rows else list(_columns()))
    for column, value in where.items():
        values = value if isinstance(value, (list, tuple, set)) else [value]
        _check_asked(column, values, frame)
        frame = frame[frame[column].isin(values)]
    return frame.reset_index(drop=True)


def _check_asked(column: str, values: Iterable[Any], frame: pd.DataFrame) -> None:
    """Refuse what no record can have: an empty answer would be read as a result."""
    if column not in frame:
        raise ConfigError(
            f"{column}: the records have no such column{did_you_mean(column, frame.columns)}"
        )
    choices = (
        get_args(RunConfig.model_fields[column].annotation)
        if column in RunConfig.model_fields
        else ()
    )
    if choices and (wrong := [value for value in values if value not in choices]):
        raise ConfigError(
            f"{column}: {wrong[0]!r} is not usable; choose one of {', '.join(map(str, choices))}"
        )


def history(frame: pd.DataFrame, folder: Path | None = None) -> pd.DataFrame:
    """The learning curves of the runs in a frame: one row per run and epoch, with the run's path, variant and seed."""
    folder = folder or store.records_folder()
    parts = []
    for row in frame.itertuples():
        curves = pd.DataFrame(read(folder / f"{row.path}.json").history)
        parts.append(
            curves.assign(
                epoch=range(1, len(curves) + 1), path=row.path, variant=row.variant, seed=row.seed
            )
        )
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _read_at_its_place(path: Path, folder: Path) -> Record:
    record = read(path)
    if path != (place := folder / f"{record.config.path}.json"):
        raise store.StoreError(
            f"{path} is the record of {place}. Remove the copy, or move it back."
        )
    return record


def as_row(record: Record) -> dict[str, Any]:
    config = record.config
    row = {
        **config.model_dump(),
        "hash": record.hash,
        "path": config.path,
        "variant": config.variant,
        "pair": config.pair,
        "command": config.command(),
        "seconds": record.seconds,
        "images_per_second": record.images_per_second,
        "device": record.device["name"],
        "threads": record.device["threads"],
    }
    for rule, metric in record.metrics.items():
        row[rule] = metric.test_error if metric else None
        row[f"{rule}_epoch"] = metric.epoch if metric else None
        row[f"{rule}_exact"] = metric.test_error_exact if metric else None
    last = record.metrics["last"]
    return {
        **row,
        "last_validation": last.validation_error,
        "last_loss": last.test_loss,
        "last_train": last.train_eval_error,
    }


def _measured(record: Record, folder: Path) -> dict[str, float | None]:
    """The columns of an analysed run."""
    if not (found := analysis_of(record, folder)):
        return {}
    analysis, training = found
    return analysis.metrics | (
        {"last_again": training.metrics["last"].test_error} if training is not record else {}
    )


def _columns() -> list[str]:
    rules = [
        f"{rule}{suffix}"
        for rule in ("last", "val_selected", "best_on_test")
        for suffix in ("", "_epoch", "_exact")
    ]
    extra = [
        "hash",
        "path",
        "variant",
        "pair",
        "command",
        "seconds",
        "images_per_second",
        "device",
        "threads",
    ]
    return [*RunConfig.model_fields, *extra, *rules, "last_validation", "last_loss", "last_train"]


@functools.cache
def provenance() -> dict[str, Any]:
    """Commit, versions and machine, as far as they can be known."""
    import torchvision

    from iekd import __version__

    cuda = torch.cuda.is_available()
    return {
        "git": _commit(Path(__file__)),
        "versions": {
            "iekd": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
        "device": {
            "name": torch.cuda.get_device_name() if cuda else _processor(),
            "type": "cuda" if cuda else "cpu",
            "threads": torch.get_num_threads(),
        },
    }


def _commit(source: Path) -> dict[str, Any]:
    """The commit of the repository that holds this file, and whether its folder differs from it. A repository that the file only lies in
    (an environment in somebody's own project) says nothing of it."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("GIT_")
    }  # a hook's name another repository

    def git(*words: str) -> str:
        command = ["git", "-C", str(source.parent), *words]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, env=environment
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "--", source.name)
        changes = git("status", "--porcelain", "--untracked-files=no", "--", ".")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changes)}
    except (
        OSError,
        subprocess.CalledProcessError,
    ):  # no git on this machine, or no such repository
        return {"commit": None, "dirty": None}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
