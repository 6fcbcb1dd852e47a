"""What was measured afterwards on the trained weights of a run (`iekd analyse`).

It is stored next to the record, in `seed<k>.analysis.json`. Runs whose weights were not kept can be
trained again for it, in a separate store (`runs/again`); their records stay as they are.
"""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from iekd.config import RunConfig
from iekd.records import store
from iekd.records.record import ANALYSIS, SCHEMA, Record, parsed, read, rounded, save_json


class Analysis(BaseModel):
    """The measurements of one run. Written atomically, and again when the weights change.

    hash: of the configuration. weights, parents: checksums of the weights it was computed from.
    metrics: the columns it adds to the frame of records. noise: a list per column, with one row
    per sigma and draw. answers: what student and teacher predict for the test images, see
    `iekd.analysis.looks.answers`; older analyses have none.
    """

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA
    hash: str
    weights: str
    parents: dict[str, str]
    git: dict[str, Any]
    versions: dict[str, str]
    metrics: dict[str, float | None]
    noise: dict[str, list[float]]
    answers: dict[str, str] = {}

    def save(self, config: RunConfig) -> None:
        """Write it next to the run's record. Raises `StoreError` if that cannot be written."""
        data = self.model_dump()
        data["metrics"] = dict(zip(self.metrics, rounded(self.metrics.values()), strict=True))
        data["noise"] = {name: rounded(values) for name, values in self.noise.items()}
        save_json(analysis_path(config), {"schema": data.pop("schema_version"), **data})


def analysis_path(config: RunConfig) -> Path:
    """Where the analysis of a run is stored."""
    return store.records_folder() / f"{config.path}{ANALYSIS}"


def read_analysis(path: Path, record: Record) -> Analysis | None:
    """The analysis of a record, from its file.

    None if there is none, or if the record's weights have changed since. Raises `StoreError` if
    the file is not a valid analysis.
    """
    if not store.exists(path):
        return None
    remedy = "Delete it and run `iekd analyse` again."
    found = parsed(path, lambda data: Analysis(**data), "analysis", remedy)
    return found if (found.hash, found.weights) == (record.hash, record.weights) else None


def analysis_of(record: Record, folder: Path | None = None) -> tuple[Analysis, Record] | None:
    """What was measured on a run's weights, and the record of the training that produced them.

    That is the record itself or, where its weights were not kept, that of its second training
    below `again/` ('runs/again/records' next to 'runs/records'). None if there is no analysis.
    """
    folder = folder or store.records_folder()
    path = folder / f"{record.config.path}.json"
    if analysis := read_analysis(path.with_suffix(ANALYSIS), record):
        return analysis, record

    # The second training, if there was one.
    path = folder.parent / "again" / folder.name / f"{record.config.path}.json"
    if not store.exists(path) or (again := read(path)).hash != record.hash:
        return None
    analysis = read_analysis(path.with_suffix(ANALYSIS), again)
    return (analysis, again) if analysis else None
