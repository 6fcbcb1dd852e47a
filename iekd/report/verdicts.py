"""What the records say of the claims: every contrast of a claim's arm with a rival, one verdict a claim, and the board that shows them."""

from __future__ import annotations

from collections.abc import Container
from html import escape
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from iekd.config import RunConfig
from iekd.config.presets import PRESETS, usual
from iekd.errors import ConfigError
from iekd.report import tuning
from iekd.report.claims import (
    CLAIMS,
    CONFIRMATORY,
    NO_ANALYSIS,
    NO_RUNS,
    PILOT,
    PLANNED,
    REHEARSED,
    SMALLEST,
    TEACHER,
    TOO_FEW,
    TRUST,
    Claim,
)
from iekd.report.labels import label, record_link, runs_of
from iekd.report.results import torch_versions
from iekd.report.statistics import Paired, by_teacher, detectable, holm, outcome, paired, summary
from iekd.report.tables import METRICS, foot, framed, interval, number, p_text, smallest

SWEEPS = {
    "class": "iekd sweep runs/*.yaml",
    "paper": "iekd sweep runs/paper/*.yaml",
}  # all grids of a preset
Verdict = Literal[
    "supported",
    "contradicted",
    "equivalent",
    "inconclusive",
    "reproduced",
    "not reproduced",
    "open",
    "not tested",
]
# Of an outcome (`iekd.report.statistics.outcome`) of a claim that says "lower"; and of the paper's claims about its own pair and recipe.
WORDS: dict[str, Verdict] = {"lower": "supported", "higher": "contradicted"}
PAPERS_OWN: dict[str, Verdict] = {"lower": "reproduced", "higher": "not reproduced"}
SIGNS: dict[Verdict, str] = {
    "supported": "✔",
    "reproduced": "✔",
    "contradicted": "✘",
    "not reproduced": "✘",
    "equivalent": "=",
    "inconclusive": "≈",
    "open": "…",
    "not tested": "○",
}
POWER = 0.8  # with which a detectable difference is seen


class Arm(NamedTuple):
    """An arm's label, its errors (or another metric) by seed, the address of its records, and the folder of their paths."""

    label: str
    errors: pd.Series
    link: str
    folder: str


class Contrast(NamedTuple):
    """The arm of a claim against one rival."""

    rival: str
    result: Paired
    differences: pd.Series  # over which `result` is: by seed; against the teacher by teacher
    links: tuple[str, str]
    folders: tuple[str, str]
    students: int  # runs of the claim's arm in it; against the teacher more than there are pairs


class Tested(NamedTuple):
    """What can be tested of a claim so far; `note` says why there is nothing, or what to know."""

    contrasts: tuple[Contrast, ...] = ()
    note: str = NO_RUNS
    complete: bool = False  # against every rival

    @property
    def within(self) -> np.ndarray:
        """The contrasts' p-values, Holm-corrected over the rivals."""
        return holm(c.result.p for c in self.contrasts)

    @property
    def decisive(self) -> int:
        """Index of the contrast that decides (see `board`)."""
        p = np.where(np.isnan(self.within), 1.0, self.within)
        against = [i for i, c in enumerate(self.contrasts) if c.result.difference >= 0]
        return (
            min(against, key=lambda i: (p[i], -self.contrasts[i].result.difference))
            if against
            else int(np.argmax(p))
        )


# ---------------------------------------------------------------------- verdicts


def board(
    frame: pd.DataFrame,
    preset: str = "class",
    claims: tuple[Claim, ...] = CLAIMS,
    metric: str = "last",
    **setting: Any,
) -> pd.DataFrame:
    """One row per claim: id, preset, sentence, source, verdict, metric ('' = test error), effect (a - b, percentage points or the unit
    of that metric), low, high, n (pairs; against the teacher a pair is a teacher with its students), p, p_holm (corrected over the
    tested claims), rival, note, links. `setting` changes fields of the preset in every arm, `metric` the column that claims about
    errors look at.

    The verdict is the outcome (`iekd.report.statistics.outcome`) by p_holm: lower is "supported", higher "contradicted", or "reproduced"
    and "not reproduced" where the paper claims it of its own pair and recipe (preset paper, no `setting`).
    A claim against many is decided by one rival. If some rival has the lower mean error, it is the one with the
    smallest p, Holm-corrected within the claim: significant means contradicted. Otherwise it is the one with the
    largest p: supported only if a is significantly better than every one. While an arm lacks planned seeds, or a
    rival was not run, the verdict is open. The pilot's seeds are shown where there are no others; they decide nothing.
    """
    tested = [examine(frame, claim, preset, metric, **setting) for claim in claims]
    within = [t.within[t.decisive] if t.contrasts else np.nan for t in tested]
    pairs = zip(within, holm(within), strict=True)
    return pd.DataFrame(
        [
            _row(c, t, p, preset, bool(setting))
            for c, t, p in zip(claims, tested, pairs, strict=True)
        ]
    )


def _row(
    claim: Claim, tested: Tested, p: tuple[float, float], preset: str, changed: bool
) -> dict[str, Any]:
    about = {"id": claim.id, "preset": preset, "sentence": claim.sentence, "source": claim.source}
    if not tested.contrasts:
        nothing = dict.fromkeys(("effect", "low", "high", "p", "p_holm"), np.nan)
        return {
            **about,
            "verdict": "not tested",
            "metric": claim.metric,
            **nothing,
            "n": 0,
            "rival": "",
            "note": tested.note,
            "links": (),
        }
    shown = tested.contrasts[tested.decisive]
    papers_own = preset == "paper" and claim.source != "X" and not changed
    bound = smallest(preset, claim.metric or "last")
    word, missing = _word(tested, p[1], PLANNED[preset], bound, PAPERS_OWN if papers_own else WORDS)
    result = shown.result
    size = "" if missing else _size(word, result, bound)
    remarks = [missing, tested.note, _other(tested, 3 if claim.metric else 2), size, claim.caveat]
    return {
        **about,
        "verdict": word,
        "metric": claim.metric,
        "effect": result.difference,
        "low": result.low,
        "high": result.high,
        "n": result.n,
        "p": p[0],
        "p_holm": p[1],
        "rival": shown.rival,
        "note": "; ".join(filter(None, remarks)),
        "links": shown.links,
    }


def _word(
    tested: Tested, p_holm: float, planned: int, bound: float, words: dict[str, Verdict]
) -> tuple[Verdict, str]:
    """The verdict, and what it still lacks. One rival that is better settles a claim, whatever becomes of the others."""
    decisive = tested.contrasts[tested.decisive]
    everywhere = all(
        max(-c.result.low, c.result.high) < bound for c in tested.contrasts
    )  # equivalent to one rival is not enough
    found = outcome(decisive.result, p_holm, bound if everywhere else 0.0)
    students = min(c.students for c in ([decisive] if found == "higher" else tested.contrasts))
    if students < planned:
        return "open", f"{students} of {planned} planned seeds: no verdict yet"
    if not tested.complete and found != "higher":
        return "open", "not every rival was run: no verdict yet"
    return words.get(found, found), ""


def _other(tested: Tested, digits: int) -> str:
    """Of two rivals the one that does not decide, in numbers."""
    if len(tested.contrasts) != 2:
        return ""
    i = 1 - tested.decisive
    rival, result = tested.contrasts[i][:2]
    limits = interval(result.low, result.high, True, digits)
    effect = (
        f"{number(result.difference, digits, signed=True)} {limits}, {p_text(tested.within[i])}"
    )
    return f"against the other rival, {rival}: {effect} (corrected over the two)"


def _size(word: Verdict, result: Paired, bound: float) -> str:
    """How the difference compares with the smallest one of interest, where there is one (`bound`)."""
    if word == "equivalent":
        return f"interval within ±{bound:g}"
    decided = word in (*WORDS.values(), *PAPERS_OWN.values())
    return (
        f"may be smaller than what is of interest (±{bound:g})"
        if decided and min(abs(result.low), abs(result.high)) < bound
        else ""
    )


# ---------------------------------------------------------------------- contrasts


def examine(
    frame: pd.DataFrame, claim: Claim, preset: str = "class", metric: str = "last", **setting: Any
) -> Tested:
    """The contrasts of a claim on confirmatory seeds, else on the pilot's."""
    metric = claim.metric or metric
    if claim.a is None:
        return Tested(note="nothing in this version of the book can test it")
    if len(frame):
        frame = frame[
            (frame["seed"] >= REHEARSED.get(preset, 0)) | (frame["method"] == "supervised")
        ]  # teachers have small seeds
    if frame.empty or preset != "class":  # only class scale had a pilot
        return _contrasts(frame, claim, preset, metric, setting)
    late = frame[
        (frame["seed"] >= CONFIRMATORY) | (frame["method"] == "supervised")
    ]  # pilot and confirmation share the teachers
    confirmed = _contrasts(late, claim, preset, metric, setting)
    if confirmed.contrasts:
        return confirmed
    pilot = _contrasts(frame[frame["seed"] < CONFIRMATORY], claim, preset, metric, setting)
    if pilot.contrasts:
        return pilot._replace(note="; ".join(filter(None, (pilot.note, PILOT))))
    return (
        confirmed if confirmed.note == TOO_FEW else pilot
    )  # of two that say nothing, the one that says more


def _contrasts(
    frame: pd.DataFrame, claim: Claim, preset: str, metric: str, setting: dict[str, Any]
) -> Tested:
    """The claim's arm against every rival that has at least two common seeds."""
    absent = Tested(note=NO_ANALYSIS if claim.metric else NO_RUNS)
    common = {**setting, **_swap(preset, setting, claim.swapped), **claim.fields}
    ours = _arm(frame, preset, {**common, **(claim.a or {})}, metric)
    rivals = [_rival(frame, claim, b, preset, common, metric) for b in claim.b]
    if ours is None or not any(rivals):
        return absent
    teachers = RunConfig.create(preset, **{**common, **(claim.a or {})}).teachers
    found = [
        _contrast(ours, r, teachers if b is TEACHER else 0)
        for b, r in zip(claim.b, rivals, strict=True)
        if r
    ]
    found = [c for c in found if c.result.n >= 2]
    if not found:
        return absent._replace(note=TOO_FEW)
    note = (
        ""
        if len(claim.b) == 1
        else f"compared with {len(found)} of {len(claim.b)}; shown: the one that decides"
    )
    return Tested(tuple(found), note, len(found) == len(claim.b))


def _contrast(ours: Arm, rival: Arm, teachers: int) -> Contrast:
    """Paired by seed; against the teacher (`teachers`: how many there are) one pair a teacher."""
    errors = by_teacher(ours.errors, teachers) if teachers else ours.errors
    result = paired(errors, rival.errors)
    students = int(ours.errors.notna().sum()) if teachers else result.n
    links, folders = (ours.link, rival.link), (ours.folder, rival.folder)
    return Contrast(rival.label, result, (errors - rival.errors).dropna(), links, folders, students)


def _rival(
    frame: pd.DataFrame,
    claim: Claim,
    b: dict[str, Any],
    preset: str,
    common: dict[str, Any],
    metric: str,
) -> Arm | None:
    """The arm `b`; for `TEACHER` the teacher of arm a."""
    fields = claim.a if b is TEACHER else b
    return _arm(frame, preset, {**common, **(fields or {})}, metric, of_teacher=b is TEACHER)


def _swap(preset: str, setting: dict[str, Any], swapped: bool) -> dict[str, Any]:
    """The pair; swapped, its small teacher is trained no longer than the large student, or it might be the better of the two."""
    usually = usual(preset, setting.get("dataset", PRESETS[preset]["dataset"]))
    pair = {k: setting.get(k, usually[k]) for k in ("teacher", "student")}
    if not swapped:
        return pair
    return {
        "teacher": pair["student"],
        "student": pair["teacher"],
        "teacher_epochs": usually["epochs"],
    }


def _arm(
    frame: pd.DataFrame, preset: str, fields: dict[str, Any], metric: str, of_teacher: bool = False
) -> Arm | None:
    """None without runs, or before they were analysed. Of the teacher only the seeds that teach."""
    try:
        config = RunConfig.create(preset, **fields)
    except ConfigError:  # a method or data set that this version does not have
        return None
    runs = runs_of(frame, config.teacher_run() if of_teacher else config) if len(frame) else frame
    if runs.empty or metric not in runs or runs[metric].isna().all():
        return None
    errors, first = runs.set_index("seed")[metric], runs.iloc[0].to_dict()
    if of_teacher:
        errors, first["role"] = errors[errors.index < config.teachers], "teacher"
    return Arm(label(first), errors, record_link(first), first["path"].rpartition("/")[0])


# ---------------------------------------------------------------------- sensitivity


def contrasts(
    frame: pd.DataFrame, preset: str = "class", claims: tuple[Claim, ...] = CLAIMS
) -> pd.DataFrame:
    """One row per contrast of every tested claim about errors: claim, rival, n, effect, sd, low, high (of a - b, points), p, p_holm (Holm
    over all rows of this table) and outcome by it; and the same difference looked at otherwise:

    p_wilcoxon (signed ranks: no normal distribution is assumed); low_teachers, high_teachers, p_teachers (t-test over the means of
    each teacher's students: these are independent even if students of one teacher are not); detectable: the difference that n
    seeds with this sd see with a power of 80 % at 5 %; two_versions: pairs whose runs were made with different versions of PyTorch;
    pilot: the effect on the pilot's seeds; links.
    """
    rows, results = [], []
    for claim in (c for c in claims if c.a and not c.metric):
        tested = examine(frame, claim, preset)
        early = (
            _contrasts(frame[frame["seed"] < CONFIRMATORY], claim, preset, "last", {})
            if preset == "class"
            else Tested()
        )
        pilot = {c.rival: c.result.difference for c in early.contrasts}
        for contrast in tested.contrasts:
            row = {"claim": claim.id, "rival": contrast.rival, **contrast.result._asdict()}
            rows.append(
                {
                    **row,
                    **_otherwise(contrast, preset),
                    "pilot": pilot.get(contrast.rival, np.nan),
                    "links": contrast.links,
                }
            )
            results.append(contrast.result)
    corrected = holm(r.p for r in results)
    found = [outcome(r, p, SMALLEST[preset]) for r, p in zip(results, corrected, strict=True)]
    return (
        pd.DataFrame(rows)
        .rename(columns={"difference": "effect"})
        .assign(p_holm=corrected, outcome=found)
    )


def _otherwise(contrast: Contrast, preset: str) -> dict[str, float]:
    x, result = contrast.differences, contrast.result
    teachers = RunConfig.create(preset, method="kd").teachers
    means = by_teacher(x, teachers)
    over_teachers, spread = summary(means), result.sd > 0
    return {
        "p_wilcoxon": float(stats.wilcoxon(x).pvalue) if spread else np.nan,
        "low_teachers": over_teachers.low,
        "high_teachers": over_teachers.high,
        "p_teachers": float(stats.ttest_1samp(means, 0).pvalue)
        if over_teachers.n > 1 and spread
        else np.nan,
        "detectable": result.sd * detectable(result.n, wanted=POWER),
        "two_versions": _two_versions(contrast),
    }


def _two_versions(contrast: Contrast) -> int:
    """In how many of the pairs the two runs were made with different versions of PyTorch."""
    pairs = [
        [f"{folder}/seed{seed}" for folder in contrast.folders]
        for seed in contrast.differences.index
    ]
    torch = torch_versions(path for pair in pairs for path in pair)
    return sum(len({torch[path] for path in pair if path in torch}) > 1 for pair in pairs)


# ---------------------------------------------------------------------- the board in HTML


def board_html(table: pd.DataFrame, caption: str) -> str:
    """The board as an accessible table: claim, verdict (sign and word), evidence with links, source."""
    heads = "".join(
        f'<th scope="col">{h}</th>' for h in ("claim", "verdict", "evidence", "source of the claim")
    )
    rows = "".join(
        f'<tr id="claim-{row["id"]}"><th scope="row">{escape(row["sentence"])}</th>'
        f'<td class="verdict {row["verdict"].replace(" ", "-")}">{SIGNS[row["verdict"]]} {row["verdict"]}'
        f"<small>{row['preset']} scale</small></td>"
        f"<td>{_evidence(row)}</td><td>{escape(TRUST[row['source']])}</td></tr>\n"
        for row in table.to_dict("records")
    )
    preset = table["preset"].iloc[0]
    note = (
        "Effect: difference in test error in percentage points, or in the quantity that is named, paired by seed (against the teacher, by "
        "teacher), with its 95 % interval, which is not corrected; negative is in favour of the claim. Supported or contradicted (of the "
        "paper's own recipe: reproduced or not): p below 0.05, Holm-corrected over the tested claims, and before that over a claim's "
        f"rivals. Else equivalent: interval within ±{SMALLEST[preset]:g} points; or inconclusive, which is no proof of equality. Open: "
        "planned seeds are missing."
    )
    below = foot(
        table.drop(columns="links"),
        caption,
        SWEEPS.get(preset, ""),
        tuning.size_note(usual_configs(preset, set(table["id"]))),
    )
    return framed(caption, note, f"<tr>{heads}</tr>", rows, "ie-board", below)


def usual_configs(preset: str, ids: Container[str]) -> list[RunConfig]:
    """The methods that the claims with these ids are about, at their usual weights."""
    arms = [
        fields for claim in CLAIMS if claim.id in ids and claim.a for fields in (claim.a, *claim.b)
    ]
    methods = dict.fromkeys(fields["method"] for fields in arms if fields is not TEACHER)
    return [RunConfig.create(preset, method=method) for method in methods]


def _evidence(row: dict[str, Any]) -> str:
    note = f"<small>{escape(row['note'])}</small>" if row["note"] else ""
    if row["n"] < 2:
        return note
    ours, rival = row["links"]
    digits, what = (3, f"{METRICS[row['metric']]}: ") if row["metric"] else (2, "")
    effect = f"{what}{number(row['effect'], digits, signed=True)} {interval(row['low'], row['high'], True, digits)}"
    pairs = "teachers" if row["rival"] == label(TEACHER) else "pairs"
    tested = f"{row['n']} {pairs}, {p_text(row['p_holm'])}"
    against = f'against <a href="{rival}">{escape(row["rival"])}</a>; {escape(tested)}'
    return f'<a href="{ours}">{effect}</a><small>{against}</small>{note}'
