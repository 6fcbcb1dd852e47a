"""Arms of a comparison: what they are called, where their records are shown, and which runs belong to them.

An arm is what is left of a run when the seed is taken away: (preset, dataset, pair, variant). A frame of records has
one row per finished run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pandas as pd

from iekd.config import RunConfig
from iekd.method import registry

ARM = ["preset", "dataset", "pair", "variant"]
_CHANGE = re.compile(r"-([a-z_]+)=(.+?)(?=-[a-z_]+=|$)")


def changes(variant: str) -> dict[str, str]:
    """What differs from the preset: {'explore': 'cka'} for 'ie-ft-explore=cka'."""
    return dict(_CHANGE.findall(variant))


def method_name(method: str) -> str:
    """What a person calls a method: 'IE-FT', 'FitNet'."""
    row = registry.methods().get(method)
    return row.label if row else method.upper()


def measure_name(measure: str) -> str:
    """What a person calls a measure: 'L1', 'partial L2'; of one that no file here registers, its name."""
    registry.load()
    row = registry.MEASURES.get(measure)
    return row.label if row else measure


def label(row: Mapping[str, Any]) -> str:
    """What a person calls the arm of a run: 'KD', 'inheritance only (L1)', 'IE-FT (inherit L1, explore CKA)'."""
    if row.get("role") == "teacher":
        return "Teacher"
    method, changed = row["method"], changes(row["variant"])
    name = method_name(method)
    if method.startswith("ie-"):
        name = _ie_label(name, row.get("inherit", "l1"), row.get("explore", "l1"))
        changed = {k: v for k, v in changed.items() if k not in ("inherit", "explore")}
    return ", ".join([name, *(f"{k.replace('_', ' ')} {v}" for k, v in changed.items())])


def label_of(config: RunConfig) -> str:
    """`label` of the student's arm that a configuration belongs to."""
    return label({"variant": config.variant, **config.model_dump()})


def _ie_label(name: str, inherit: str, explore: str) -> str:
    prefix = "" if name == "IE-FT" else f"{name}, "
    match inherit, explore:
        case "none", "none":
            return f"{name} without either loss"
        case _, "none":
            return f"{prefix}inheritance only ({measure_name(inherit)})"
        case "none", _:
            return f"{prefix}exploration only ({measure_name(explore)})"
        case "l1", "l1":
            return name
    return f"{name} (inherit {measure_name(inherit)}, explore {measure_name(explore)})"


def anchor(pair: str, variant: str, preset: str, dataset: str) -> str:
    """The id of an arm's section on the page of records: letters, digits, '.', '_' and '-'."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", f"{preset}--{dataset}--{pair}--{variant}")


def record_link(row: Mapping[str, Any]) -> str:
    """Address of the arm's section on the page of records."""
    return "records.html#" + anchor(*(row[k] for k in ("pair", "variant", "preset", "dataset")))


def runs_of(frame: pd.DataFrame, config: RunConfig) -> pd.DataFrame:
    """The runs of one arm, all seeds: those whose path is `config.path` but for the seed."""
    return frame[frame["path"].str.rsplit("/", n=1).str[0] == config.path.rpartition("/")[0]]


def scope(frame: pd.DataFrame, preset: str = "class", **setting: Any) -> pd.DataFrame:
    """The runs that belong in one table: teacher, student alone, and all that was distilled from the one (or none) to the other.

    `setting` names dataset, teacher and student where they differ from the preset's; other fields select further.
    In this order, KD first and IE last. Adds the columns `role` ('teacher' or 'student'), `scope` (the table's pair)
    and `label`.
    """
    config = RunConfig.create(preset, **{**setting, "method": "kd"})
    alone = (frame["pair"] == config.student) & (
        frame["method"] == "tf-kd"
    )  # its teacher is virtual: the pair is the student
    distilled = frame[alone | (frame["pair"] == config.pair)]
    wanted = {**setting, "preset": preset, "dataset": config.dataset}
    for name in wanted.keys() - {"teacher", "student"}:  # these two are the pair
        distilled = distilled[distilled[name] == wanted[name]]
    distilled = distilled.sort_values("method", key=lambda names: names.map(_rank), kind="stable")
    like_teachers = runs_of(frame, config.teacher_run())  # of these only the seeds that teach
    parts = [
        like_teachers[like_teachers["seed"] < config.teachers].assign(role="teacher"),
        runs_of(frame, config.replace(method="supervised")).assign(role="student"),
        distilled.assign(role="student"),
    ]
    rows = pd.concat(parts, ignore_index=True).assign(scope=config.pair)
    return rows.assign(label=[label(row) for row in rows.to_dict("records")])


def _rank(method: str) -> str:
    return f"{method.startswith('ie-'):d}{method != 'kd':d}{method}"
