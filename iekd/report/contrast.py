"""Every contrast of a claim's arm with a rival, on the seeds that count, and other tests of it."""

import functools
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from iekd.config import RunConfig
from iekd.config.presets import PRESETS, usual
from iekd.errors import ConfigError
from iekd.report import claims
from iekd.report.arms import runs_of
from iekd.report.claims import CLAIMS, CONFIRMATORY, SMALLEST, TEACHER, Claim
from iekd.report.labels import label, record_link
from iekd.report.statistics import Paired, by_teacher, detectable, holm, outcome, paired, summary

PILOT = "pilot seeds only, seen before the protocol was fixed"
POWER = 0.8  # probability of seeing a detectable difference


class Arm(NamedTuple):
    """Label; errors (or another metric) by seed, with the versions of PyTorch; address."""

    label: str
    errors: pd.Series
    torch: pd.Series
    link: str


class Contrast(NamedTuple):
    """The arm of a claim against one rival."""

    rival: str
    result: Paired
    differences: pd.Series  # what `result` is over: by seed; against the teacher, by teacher
    arms: tuple[Arm, Arm]
    students: int  # runs of the claim's arm in it; against the teacher, more than n

    @property
    def links(self) -> tuple[str, ...]:
        return tuple(arm.link for arm in self.arms)

    @property
    def two_versions(self) -> int:
        """The number of pairs whose two runs used different versions of PyTorch."""
        found = [arm.torch.reindex(self.differences.index) for arm in self.arms]
        return int((pd.concat(found, axis=1).dropna().nunique(axis=1) > 1).sum())


class Tested(NamedTuple):
    """What can be tested of a claim so far; `note` says why nothing can, or what to know."""

    contrasts: tuple[Contrast, ...] = ()
    note: str = claims.NO_RUNS
    complete: bool = False  # against every rival


def examine(
    frame: pd.DataFrame, claim: Claim, preset: str = "class", metric: str = "last", **setting: Any
) -> Tested:
    """A claim's contrasts on confirmatory seeds, else on the pilot's (only class scale had one)."""
    if claim.a is None:
        return Tested(note=claim.caveat or "nothing in this version of the book can test it")
    contrast = functools.partial(_contrasts, claim=claim, preset=preset, metric=metric, **setting)
    if preset != "class":
        return contrast(_from(frame, claims.REHEARSED.get(preset, 0)))
    confirmed = contrast(_from(frame, CONFIRMATORY))
    if confirmed.contrasts:
        return confirmed
    pilot = contrast(frame[frame["seed"] < CONFIRMATORY])
    if pilot.contrasts:
        return pilot._replace(note="; ".join(filter(None, (pilot.note, PILOT))))
    return confirmed if confirmed.note == claims.TOO_FEW else pilot  # the more informative one


def _from(frame: pd.DataFrame, first: int) -> pd.DataFrame:
    """The runs from a seed on, and the teachers, whose seeds are small."""
    return frame[(frame["seed"] >= first) | (frame["method"] == "supervised")]


def _contrasts(
    frame: pd.DataFrame, claim: Claim, preset: str, metric: str = "last", **setting: Any
) -> Tested:
    """The claim's arm against every rival that has at least two common seeds."""
    own_setting = {**setting, **claim.fields}
    common = {**own_setting, **_pair(preset, own_setting, claim.swapped)}
    find = functools.partial(_arm, frame, preset, claim.metric or metric, claim.fields)
    own = {**common, **(claim.a or {})}
    ours, rivals = find(own), []
    for b in claim.b:
        of_teacher = b == TEACHER
        rivals.append((find(own if of_teacher else {**common, **b}, of_teacher), of_teacher))
    if ours is None or not any(rival for rival, _ in rivals):
        return Tested(note=claims.NO_ANALYSIS if claim.metric else claims.NO_RUNS)

    # against the teacher, one pair is a teacher with its students
    teachers = RunConfig.create(preset, **own).teachers
    found = [_contrast(ours, rival, teachers * units) for rival, units in rivals if rival]
    found = [contrast for contrast in found if contrast.result.n >= 2]
    if not found:
        return Tested(note=claims.TOO_FEW)
    several = f"compared with {len(found)} of {len(claim.b)}; shown: the one that decides"
    return Tested(tuple(found), several if len(claim.b) > 1 else "", len(found) == len(claim.b))


def _contrast(ours: Arm, rival: Arm, teachers: int) -> Contrast:
    """Paired by seed; against the teacher (`teachers`: how many there are) by teacher."""
    errors = by_teacher(ours.errors, teachers) if teachers else ours.errors
    result = paired(errors, rival.errors)
    students = int(ours.errors.notna().sum()) if teachers else result.n
    differences = (errors - rival.errors).dropna()
    return Contrast(rival.label, result, differences, (ours, rival), students)


def kept(frame: pd.DataFrame, claim: Claim, preset: str, **setting: Any) -> float:
    """The training error of the student alone as a fraction of its test error; mean over seeds.

    If its training errors are not on record, that of all students of its pair. NaN if nothing is
    known. Above a half the student under-fits, by the book's protocol.
    """
    if claim.a is None or "last_train" not in frame:
        return np.nan
    fields = {**setting, **claim.fields}
    fields |= _pair(preset, fields, claim.swapped)
    try:
        alone = RunConfig.create(preset, **{**fields, "method": "supervised"})
    except ConfigError:  # a data set that this version does not have
        return np.nan

    # its own runs, else those of its pair
    known = frame.dropna(subset=["last_train"])
    runs = runs_of(known, alone)
    if runs.empty:
        wanted = [preset, alone.dataset, f"{fields['teacher']}-{alone.student}", alone.epochs]
        runs = known[(known[["preset", "dataset", "pair", "epochs"]] == wanted).all(axis=1)]
    return float((runs["last_train"] / runs["last"]).mean())


def _pair(preset: str, setting: dict[str, Any], swapped: bool) -> dict[str, Any]:
    """The networks; if swapped, the small teacher is trained no longer than the student."""
    usually = usual(preset, setting.get("dataset", PRESETS[preset]["dataset"]))
    teacher, student = (setting.get(name, usually[name]) for name in ("teacher", "student"))
    if not swapped:
        return {"teacher": teacher, "student": student}
    return {"teacher": student, "student": teacher, "teacher_epochs": usually["epochs"]}


def _arm(
    frame: pd.DataFrame,
    preset: str,
    metric: str,
    told: Collection[str],
    fields: dict[str, Any],
    of_teacher: bool = False,
) -> Arm | None:
    """None without runs, or before their analysis. For the teacher, only the seeds that teach.

    What is `told` of all arms of the claim is not part of the name.
    """
    try:
        config = RunConfig.create(preset, **fields)
    except ConfigError:  # a method or data set that this version does not have
        return None
    runs = runs_of(frame, config.teacher_run() if of_teacher else config)
    if runs.empty or metric not in runs or runs[metric].isna().all():
        return None
    first = runs.iloc[0].to_dict() | {"role": "teacher" if of_teacher else "student"}
    by_seed = runs.set_index("seed")
    by_seed = by_seed[by_seed.index < config.teachers] if of_teacher else by_seed
    return Arm(label(first, told), by_seed[metric], by_seed["torch"], record_link(first))


def sensitivity(
    frame: pd.DataFrame, preset: str = "class", claims: Sequence[Claim] = CLAIMS
) -> pd.DataFrame:
    """One row per contrast of every tested claim about errors, with other analyses of the same.

    Columns: claim, rival, n, effect, sd, low, high (of a - b, points), p, p_holm (over all rows),
    outcome by it, links; p_wilcoxon (signed ranks); low_teachers, high_teachers, p_teachers (t-test
    over the means of each teacher's students, which are independent; NaN without a teacher);
    detectable (the difference that n seeds with this sd see with a power of 80 % at 5 %);
    two_versions (pairs made with different versions of PyTorch); pilot (the effect on its seeds).
    """
    rows, results = [], []
    early = frame[frame["seed"] < (CONFIRMATORY if preset == "class" else 0)]
    for claim in claims:
        if claim.a is None or claim.metric:
            continue
        pilot = {c.rival: c.result.difference for c in _contrasts(early, claim, preset).contrasts}
        for c in examine(frame, claim, preset).contrasts:
            row = {"claim": claim.id, "rival": c.rival, **c.result._asdict()}
            row |= _otherwise(c, _teachers(claim, preset))
            rows.append(row | {"pilot": pilot.get(c.rival, np.nan), "links": c.links})
            results.append(c.result)
    corrected = holm(r.p for r in results)
    found = [outcome(r, p, SMALLEST[preset]) for r, p in zip(results, corrected, strict=True)]
    table = pd.DataFrame(rows).rename(columns={"difference": "effect"})
    return table.assign(p_holm=corrected, outcome=found)


def _teachers(claim: Claim, preset: str) -> int:
    """How many teachers the arms of a claim share; 0 in mutual learning, which has none."""
    arms = [arm for arm in (claim.a, *claim.b) if arm and arm != TEACHER]
    taught = any(RunConfig.create(preset, **arm).has_teacher for arm in arms)
    return RunConfig.create(preset, method="kd").teachers if taught else 0


def _otherwise(contrast: Contrast, teachers: int) -> dict[str, float]:
    """Other tests of a contrast, and the difference it can detect."""
    x, result = contrast.differences, contrast.result
    means = by_teacher(x, teachers) if teachers else x[:0]
    over, varies = summary(means), result.sd > 0
    p_ranks = float(stats.wilcoxon(x).pvalue) if varies else np.nan
    p_teachers = float(stats.ttest_1samp(means, 0).pvalue) if over.n > 1 and varies else np.nan
    least = result.sd * detectable(result.n, wanted=POWER)
    found = {"p_wilcoxon": p_ranks, "low_teachers": over.low, "high_teachers": over.high}
    found |= {"p_teachers": p_teachers, "detectable": least}
    return found | {"two_versions": contrast.two_versions}
