"""Which runs belong to an arm, and which arms to a table.

An arm is a run without its seed: preset, data set, pair and variant. A frame of records has one row
per finished run. A *scope* is the frame of one table, with the columns `role`, `scope` (the table's
pair) and `label`.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from iekd.config import RunConfig
from iekd.report.claims import CONFIRMATORY
from iekd.report.labels import label

ARM = ["preset", "dataset", "pair", "variant"]


def runs_of(frame: pd.DataFrame, config: RunConfig) -> pd.DataFrame:
    """The runs of one arm, all seeds."""
    return frame[(frame[ARM] == [getattr(config, name) for name in ARM]).all(axis=1)]


def students_of(runs: pd.DataFrame) -> pd.DataFrame:
    """The students of a scope."""
    return runs[runs["role"] == "student"]


def by_variant(runs: pd.DataFrame, metric: str = "last") -> dict[str, pd.Series]:
    """A metric of the students of a scope by seed, for each variant."""
    students = students_of(runs).set_index("seed")
    return {str(variant): values for variant, values in students.groupby("variant")[metric]}


def scope(frame: pd.DataFrame, preset: str = "class", **setting: Any) -> pd.DataFrame:
    """The runs of one table: teacher, student alone, and what was distilled from one to the other.

    `setting` gives dataset, teacher and student where they differ from the preset's; other fields
    select further. In this order, with KD first and IE last.
    """
    config = RunConfig.create(preset, **{**setting, "method": "ft"})

    # what was distilled; Tf-KD has a virtual teacher, so its pair is the student
    alone = (frame["pair"] == config.student) & (frame["method"] == "tf-kd")
    distilled = frame[alone | (frame["pair"] == config.pair)]
    wanted = {**setting, "preset": preset, "dataset": config.dataset}
    for name in wanted.keys() - {"teacher", "student"}:
        distilled = distilled[distilled[name] == wanted[name]]
    distilled = distilled.sort_values("method", key=lambda names: names.map(_rank), kind="stable")

    # of the runs like the teacher's, only the seeds that teach
    taught = runs_of(frame, config.teacher_run())
    taught = taught[taught["seed"] < config.teachers]
    students = pd.concat([runs_of(frame, config.replace(method="supervised")), distilled])
    parts = [taught.assign(role="teacher"), students.assign(role="student")]
    return labelled(pd.concat(parts, ignore_index=True).assign(scope=config.pair))


def labelled(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with the column `label`, computed once per arm."""
    arm = runs.groupby([name for name in ("role", *ARM) if name in runs], sort=False).ngroup()
    names = [label(row) for row in runs[~arm.duplicated()].to_dict("records")]
    return runs.assign(label=[names[k] for k in arm])


def _rank(method: str) -> str:
    return f"{method.startswith('ie-'):d}{method != 'kd':d}{method}"


def grid_runs(frame: pd.DataFrame, configs: Sequence[RunConfig]) -> pd.DataFrame:
    """The finished runs of a grid of one pair as a scope: teachers, if it has any, then arms."""
    taught = [c for c in configs if c.has_teacher]
    config = next(iter([*taught, *(c for c in configs if c.is_mutual), *configs]))
    named = {name: getattr(config, name) for name in ("dataset", "teacher", "student")}
    pair = {name: value for name, value in named.items() if value != "none"}  # else the preset's
    students = students_of(scope(frame, config.preset, **pair))
    students = students[students["variant"].isin({c.variant for c in configs})]
    # of the students alone, the scope has those trained as the preset says
    alone = {c.variant: c for c in configs if c.method == "supervised"}
    otherwise = [runs_of(frame, c) for name, c in alone.items() if name != "supervised"]
    if otherwise:
        found = pd.concat(otherwise).assign(role="student", scope=config.pair)
        students = pd.concat([labelled(found), students])
    if not taught:
        return students.reset_index(drop=True)

    # the teachers are trained as this grid says, which may differ from the preset
    own = {name: getattr(config, name) for name in ("teacher_epochs", "teacher_lr")}
    runs = scope(frame, config.preset, **pair, **own)
    return pd.concat([runs[runs["role"] == "teacher"], students], ignore_index=True)


def finished(frame: pd.DataFrame, configs: Iterable[RunConfig]) -> pd.DataFrame:
    """The finished ones of these runs, labelled as students."""
    paths = {config.path for config in configs}
    runs = frame[frame["path"].isin(paths)]
    return labelled(runs.assign(role="student").reset_index(drop=True))


def decisive_runs(frame: pd.DataFrame, configs: Sequence[RunConfig]) -> pd.DataFrame:
    """`grid_runs`, with only the students on the seeds that decide."""
    runs = grid_runs(frame, configs)
    parts = [runs[runs["role"] == "teacher"], decisive(students_of(runs), configs)]
    return pd.concat(parts, ignore_index=True)


def decisive(runs: pd.DataFrame, configs: Iterable[RunConfig]) -> pd.DataFrame:
    """The runs on confirmatory seeds, if every arm has at least two; else those on the pilot's."""
    variants = {c.variant for c in configs}
    runs = runs[runs["variant"].isin(variants)]
    late = runs["seed"] >= CONFIRMATORY
    seeds = runs[late].groupby("variant")["seed"].nunique()
    enough = all(seeds.get(variant, 0) >= 2 for variant in variants)
    return runs[late if enough else ~late].reset_index(drop=True)
