"""A finished run as one small JSON file, at a path that follows from the configuration.

`runs/records/<preset>/<dataset>/<teacher>-<student>/<method>[-<field>=<value>...]/seed<k>.json`
"""

import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from iekd.config import RunConfig
from iekd.errors import StoreError
from iekd.records import store

SCHEMA = 1
# The suffix of an analysis (iekd.records.analyses); that of a record is '.json'.
ANALYSIS = ".analysis.json"
# `RunConfig.path`: nothing hidden, no '..', no copy made by an editor, a desktop or a sync program.
PLACE = re.compile(r"(\w[\w=.+-]*/)+seed(0|[1-9][0-9]*)")

_passed_over: set[str] = set()
_Read = TypeVar("_Read")


class Metric(BaseModel):
    """The state of a run at one epoch (from 1). Errors in percent, None for an auto-encoder."""

    epoch: int
    test_error: float | None
    # Without the test images known to be recompressed copies.
    test_error_exact: float | None = None
    validation_error: float | None = None
    test_loss: float | None = None
    # On the training images, evaluation mode, no augmentation; last epoch only.
    train_eval_error: float | None = None


class Record(BaseModel):
    """What a finished run leaves behind. Written once, atomically, by `train`; never edited.

    parents: checksum of each parent's weights, by role. weights: checksum of this run's own.
    loss_digest: of the code that computed the loss (iekd.training.digest); None in older records.
    metrics: at the epochs `last`, `val_selected` and `best_on_test` (biased: chosen on test data).
    """

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA
    config: RunConfig
    hash: str
    parents: dict[str, str]
    weights: str
    git: dict[str, Any]
    versions: dict[str, str]
    device: dict[str, Any]
    started: str
    seconds: float
    images_per_second: float
    data: dict[str, str]
    loss_digest: str | None = None
    history: dict[str, list[float | None]]
    metrics: dict[str, Metric | None]

    @property
    def last(self) -> Metric:
        """The state at the last epoch, which every record has."""
        metric = self.metrics["last"]
        assert metric is not None
        return metric

    def to_json(self) -> dict[str, Any]:
        """Plain data, `schema` first, with histories rounded to seven significant digits."""
        data = self.model_dump()
        data["history"] = {name: rounded(values) for name, values in self.history.items()}
        return {"schema": data.pop("schema_version"), **data}

    def save(self) -> None:
        """Write it to its path. Raises `StoreError` if that cannot be written."""
        save_json(record_path(self.config), self.to_json())


def rounded(values: Iterable[float | None]) -> list[float | None]:
    """Each value rounded to seven significant digits."""
    return [value if value is None else float(f"{value:.7g}") for value in values]


def save_json(path: Path, data: dict[str, Any]) -> None:
    """Write plain data, atomically."""
    store.write_atomic(path, (json.dumps(data, indent=1) + "\n").encode())


def parsed(path: Path, make: Callable[[dict[str, Any]], _Read], kind: str, remedy: str) -> _Read:
    """The result of `make` for a JSON file. Raises `StoreError` with the remedy if it fails."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.pop("schema") != SCHEMA:
            raise ValueError(f"schema is not {SCHEMA}: a different version of iekd wrote it")
        return make(data)
    except PermissionError as error:
        raise store.cannot_read(path, error) from error
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise StoreError(f"{path} is not a valid {kind} ({error}). {remedy}") from error


def read(path: Path) -> Record:
    """A record from its file. Raises `StoreError` if the file is not a valid record."""
    remedy = "Restore it from git, or delete it and run it again."
    return parsed(path, _record, "record", remedy)


def _record(data: dict[str, Any]) -> Record:
    record = Record.model_validate(data, context={"finished": True})
    if record.hash != record.config.hash:
        raise ValueError("its configuration does not match its hash: it was edited")
    return record


# ---------------------------------------------------------------------- finding


def record_path(config: RunConfig) -> Path:
    """Where the record of a run is stored."""
    return store.records_folder() / f"{config.path}.json"


def find(config: RunConfig) -> Record | None:
    """The finished record of a configuration, if there is one."""
    path = record_path(config)
    if not store.exists(path):
        return None
    record = read(path)
    if record.hash != config.hash:
        raise StoreError(
            f"{path} holds another run ({record.hash}, not {config.hash}). "
            "Move it away, or restore it from git."
        )
    return record


def is_place(name: str, *ends: str) -> bool:
    """Whether a name, relative to the records or cache folder, is a run's path plus a suffix."""
    return any(name.endswith(end) and PLACE.fullmatch(name.removesuffix(end)) for end in ends)


def files(folder: Path, end: str = ".json") -> list[Path]:
    """The records below a folder (or the files with another suffix), sorted.

    Files that only look like one are skipped and named on standard error.
    """
    found, strays = [], []
    for path in store.walk(folder):
        name = path.relative_to(folder).as_posix()
        if is_place(name, end):
            found.append(path)
        elif name.endswith(end) and not is_place(name, ANALYSIS):
            strays.append(path)
    pass_over(strays)
    return sorted(found)


def pass_over(strays: Iterable[Path | str]) -> None:
    """Report, once per file, that it is skipped."""
    new = sorted({str(stray) for stray in strays} - _passed_over)
    _passed_over.update(new)
    if new:
        more = f" and {len(new) - 3} more" if len(new) > 3 else ""
        shown = ", ".join(new[:3]) + more
        print(f"iekd: passed over, not the file of a run at its place: {shown}", file=sys.stderr)


def weights_paths(config: RunConfig) -> list[Path]:
    """Where a run's weights may be: committed next to its record, or in this machine's cache."""
    folders = store.records_folder(), store.cache_folder()
    return [folder / f"{config.path}.safetensors" for folder in folders]


def weights_at_hand(config: RunConfig) -> Path | None:
    """The weights file of a finished run, if there is one with the checksum in the record."""
    if record := find(config):
        for path in weights_paths(config):
            if store.stored_checksum(path) == record.weights:
                return path
    return None


def orphans(parent: Record) -> list[str]:
    """Paths of the finished runs that learned from weights of this run other than `parent`'s."""
    found = []
    networks = set(parent.config.pair.split("-"))

    # Parents and children share preset and data set.
    folder = store.records_folder() / parent.config.preset / parent.config.dataset
    for path in files(folder):
        if networks <= set(path.relative_to(folder).parts[0].split("-")):
            child = read(path)
            roles = [role for role, run in child.config.parents().items() if run == parent.config]
            if any(child.parents.get(role, parent.weights) != parent.weights for role in roles):
                found.append(child.config.path)
    return found
