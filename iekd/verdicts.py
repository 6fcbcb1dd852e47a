"""What the records say of the claims: every contrast of a claim's arm with a rival, one verdict a claim, and the board that shows them."""

from __future__ import annotations

from html import escape
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.power import TTestPower

from iekd.arms import label, record_link, runs_of
from iekd.claims import CLAIMS, CONFIRMATORY, NO_ANALYSIS, NO_RUNS, PILOT, PLANNED, SMALLEST, TEACHER, TOO_FEW, TRUST, Claim
from iekd.config import ConfigError, RunConfig
from iekd.presets import PRESETS
from iekd.stats import Paired, Verdict, holm, paired, summary, verdict
from iekd.tables import METRICS, foot, framed, interval, number, p_text

SWEEPS = {"class": "iekd sweep runs/*.yaml", "paper": "iekd sweep runs/paper/*.yaml"}  # all grids of a preset
SIGNS = {"reproduced": "✔", "not reproduced": "✘", "not distinguishable": "≈", "open": "…", "not tested": "○"}
POWER = 0.8  # with which a detectable difference is seen


class Arm(NamedTuple):
    """An arm's label, its errors (or another metric) by seed, and the address of its records."""

    label: str
    errors: pd.Series
    link: str


class Contrast(NamedTuple):
    """The arm of a claim against one rival."""

    rival: str
    result: Paired
    differences: pd.Series  # by seed, over which `result` is
    links: tuple[str, str]


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
        return min(against, key=lambda i: (p[i], -self.contrasts[i].result.difference)) if against else int(np.argmax(p))


# ---------------------------------------------------------------------- verdicts


def board(
    frame: pd.DataFrame, preset: str = "class", claims: tuple[Claim, ...] = CLAIMS, metric: str = "last", **setting: Any
) -> pd.DataFrame:
    """One row per claim: id, preset, sentence, source, verdict, metric ('' = test error), effect (a - b, percentage points or the unit
    of that metric), low, high, n (pairs), p, p_holm (corrected over the tested claims), rival, note, links. `setting` changes
    fields of the preset in every arm, `metric` the column that claims about errors look at.

    A claim against many is decided by one rival. If some rival has the lower mean error, it is the one with the
    smallest p, Holm-corrected within the claim: significant means "not reproduced". Otherwise it is the one with the
    largest p: "reproduced" only if a is significantly better than every one. While an arm lacks planned seeds, or a
    rival was not run, the verdict is open. The pilot's seeds are shown where there are no others; they decide nothing.
    """
    tested = [examine(frame, claim, preset, metric, **setting) for claim in claims]
    within = [t.within[t.decisive] if t.contrasts else np.nan for t in tested]
    return pd.DataFrame([_row(c, t, p, preset) for c, t, p in zip(claims, tested, zip(within, holm(within), strict=True), strict=True)])


def _row(claim: Claim, tested: Tested, p: tuple[float, float], preset: str) -> dict[str, Any]:
    about = {"id": claim.id, "preset": preset, "sentence": claim.sentence, "source": claim.source}
    if not tested.contrasts:
        nothing = dict.fromkeys(("effect", "low", "high", "p", "p_holm"), np.nan)
        return {**about, "verdict": "not tested", "metric": claim.metric, **nothing, "n": 0, "rival": "", "note": tested.note, "links": ()}
    shown = tested.contrasts[tested.decisive]
    word, missing = _word(tested, p[1], PLANNED[preset])
    remarks = [missing, tested.note, "" if claim.metric or missing else _size(word, tested, SMALLEST[preset]), claim.caveat]
    result = shown.result
    return {
        **about, "verdict": word, "metric": claim.metric, "effect": result.difference, "low": result.low, "high": result.high,
        "n": result.n, "p": p[0], "p_holm": p[1], "rival": shown.rival, "note": "; ".join(filter(None, remarks)), "links": shown.links,
    }  # fmt: skip


def _word(tested: Tested, p_holm: float, planned: int) -> tuple[Verdict, str]:
    """The verdict, and what it still lacks. One rival that is better settles a claim, whatever becomes of the others."""
    word = verdict(tested.contrasts[tested.decisive].result, -1, p_holm)
    needed = [tested.contrasts[tested.decisive]] if word == "not reproduced" else tested.contrasts
    seeds = min(c.result.n for c in needed)
    if seeds < planned:
        return "open", f"{seeds} of {planned} planned seeds: no verdict yet"
    if not tested.complete and word != "not reproduced":
        return "open", "not every rival was run: no verdict yet"
    return word, ""


def _size(word: Verdict, tested: Tested, smallest: float) -> str:
    """How the difference compares with the smallest one of interest."""
    if word == "not distinguishable":
        inside = all(max(-c.result.low, c.result.high) < smallest for c in tested.contrasts)
        return f"no difference of interest (interval within ±{smallest:g})" if inside else ""
    result = tested.contrasts[tested.decisive].result
    if min(abs(result.low), abs(result.high)) < smallest:
        return f"may be smaller than what is of interest (±{smallest:g})"
    return ""


# ---------------------------------------------------------------------- contrasts


def examine(frame: pd.DataFrame, claim: Claim, preset: str = "class", metric: str = "last", **setting: Any) -> Tested:
    """The contrasts of a claim on confirmatory seeds, else on the pilot's."""
    metric = claim.metric or metric
    if claim.a is None:
        return Tested(note="nothing in this version of the book can test it")
    if frame.empty or preset != "class":  # only class scale had a pilot
        return _contrasts(frame, claim, preset, metric, setting)
    late = frame[(frame["seed"] >= CONFIRMATORY) | (frame["method"] == "supervised")]  # pilot and confirmation share the teachers
    confirmed = _contrasts(late, claim, preset, metric, setting)
    if confirmed.contrasts:
        return confirmed
    pilot = _contrasts(frame[frame["seed"] < CONFIRMATORY], claim, preset, metric, setting)
    if pilot.contrasts:
        return pilot._replace(note="; ".join(filter(None, (pilot.note, PILOT))))
    return confirmed if confirmed.note == TOO_FEW else pilot  # of two that say nothing, the one that says more


def _contrasts(frame: pd.DataFrame, claim: Claim, preset: str, metric: str, setting: dict[str, Any]) -> Tested:
    """The claim's arm against every rival that has at least two common seeds."""
    absent = Tested(note=NO_ANALYSIS if claim.metric else NO_RUNS)
    common = {**setting, **_swap(preset, setting, claim.swapped), **claim.fields}
    ours = _arm(frame, preset, {**common, **(claim.a or {})}, metric)
    rivals = [_rival(frame, claim, b, preset, common, metric) for b in claim.b]
    if ours is None or not any(rivals):
        return absent
    found = [Contrast(r.label, paired(ours.errors, r.errors), (ours.errors - r.errors).dropna(), (ours.link, r.link)) for r in rivals if r]
    found = [c for c in found if c.result.n >= 2]
    if not found:
        return absent._replace(note=TOO_FEW)
    note = "" if len(claim.b) == 1 else f"compared with {len(found)} of {len(claim.b)}; shown: the one that decides"
    return Tested(tuple(found), note, len(found) == len(claim.b))


def _rival(frame: pd.DataFrame, claim: Claim, b: dict[str, Any], preset: str, common: dict[str, Any], metric: str) -> Arm | None:
    """The arm `b`; for `TEACHER` the teacher of arm a."""
    fields = claim.a if b is TEACHER else b
    return _arm(frame, preset, {**common, **(fields or {})}, metric, of_teacher=b is TEACHER)


def _swap(preset: str, setting: dict[str, Any], swapped: bool) -> dict[str, Any]:
    """The pair; swapped, its small teacher is trained no longer than the large student, or it might be the better of the two."""
    pair = {k: setting.get(k, PRESETS[preset][k]) for k in ("teacher", "student")}
    if not swapped:
        return pair
    return {"teacher": pair["student"], "student": pair["teacher"], "teacher_epochs": PRESETS[preset]["epochs"]}


def _arm(frame: pd.DataFrame, preset: str, fields: dict[str, Any], metric: str, of_teacher: bool = False) -> Arm | None:
    """None without runs, or before they were analysed.

    For the teacher the errors are indexed by the student's seed: seed k learned from teacher k mod `teachers`.
    """
    try:
        config = RunConfig.create(preset, **fields)
    except ConfigError:  # a method or data set that this version does not have
        return None
    runs = runs_of(frame, config.teacher_run() if of_teacher else config) if len(frame) else frame
    if runs.empty or metric not in runs or runs[metric].isna().all():
        return None
    errors, first = runs.set_index("seed")[metric], runs.iloc[0].to_dict()
    if of_teacher:
        seeds = runs_of(frame, config)["seed"]
        errors = pd.Series({k: errors.get(k % config.teachers, np.nan) for k in seeds}, dtype=float)
        first["role"] = "teacher"
    return Arm(label(first), errors, record_link(first))


# ---------------------------------------------------------------------- sensitivity


def contrasts(frame: pd.DataFrame, preset: str = "class", claims: tuple[Claim, ...] = CLAIMS) -> pd.DataFrame:
    """One row per contrast of every tested claim about errors: claim, rival, n, effect, sd, low, high (of a - b, points), p and p_within
    (Holm over the claim's rivals) as on the board; and the same difference looked at otherwise:

    p_wilcoxon (signed ranks: no normal distribution is assumed); low_teachers, high_teachers, p_teachers (t-test over the means of
    each teacher's students: these are independent even if students of one teacher are not); detectable: the difference that n
    seeds with this sd see with a power of 80 % at 5 %; pilot: the effect on the pilot's seeds; links.
    """
    rows = []
    for claim in (c for c in claims if c.a and not c.metric):
        tested = examine(frame, claim, preset)
        early = _contrasts(frame[frame["seed"] < CONFIRMATORY], claim, preset, "last", {}) if preset == "class" else Tested()
        pilot = {c.rival: c.result.difference for c in early.contrasts}
        for contrast, within in zip(tested.contrasts, tested.within, strict=True):
            row = {"claim": claim.id, "rival": contrast.rival, **contrast.result._asdict(), "p_within": within}
            rows.append({**row, **_otherwise(contrast, preset), "pilot": pilot.get(contrast.rival, np.nan), "links": contrast.links})
    return pd.DataFrame(rows).rename(columns={"difference": "effect"})


def _otherwise(contrast: Contrast, preset: str) -> dict[str, float]:
    x, result = contrast.differences, contrast.result
    teachers = RunConfig.create(preset, method="kd").teachers
    by_teacher = summary(x.groupby(x.index % teachers).mean())
    spread = result.sd > 0
    return {
        "p_wilcoxon": float(stats.wilcoxon(x).pvalue) if spread else np.nan,
        "low_teachers": by_teacher.low, "high_teachers": by_teacher.high,
        "p_teachers": float(stats.ttest_1samp(x.groupby(x.index % teachers).mean(), 0).pvalue) if by_teacher.n > 1 and spread else np.nan,
        "detectable": result.sd * float(TTestPower().solve_power(nobs=result.n, alpha=0.05, power=POWER)),
    }  # fmt: skip


# ---------------------------------------------------------------------- the board in HTML


def board_html(table: pd.DataFrame, caption: str) -> str:
    """The board as an accessible table: claim, verdict (sign and word), evidence with links, source."""
    heads = "".join(f'<th scope="col">{h}</th>' for h in ("claim", "verdict", "evidence", "source of the claim"))
    rows = "".join(
        f'<tr id="claim-{row["id"]}"><th scope="row">{escape(row["sentence"])}</th>'
        f'<td class="verdict {row["verdict"].replace(" ", "-")}">{SIGNS[row["verdict"]]} {row["verdict"]}</td>'
        f"<td>{_evidence(row)}</td><td>{escape(TRUST[row['source']])}</td></tr>\n"
        for row in table.to_dict("records")
    )
    note = (
        "Effect: difference in test error in percentage points, or in the quantity that is named, paired by seed, with its 95 % interval, "
        "which is not corrected and can exclude zero where the corrected p does not decide; negative is in favour of the claim. Reproduced "
        "or not: p below 0.05, Holm-corrected over the tested claims (and before that over a claim's rivals). Not distinguishable is a "
        "result, but no proof of equality. Open: planned seeds are missing."
    )
    command = SWEEPS.get(table["preset"].iloc[0], "")
    return framed(caption, note, f"<tr>{heads}</tr>", rows, "ie-board", foot(table.drop(columns="links"), caption, command))


def _evidence(row: dict[str, Any]) -> str:
    note = f"<small>{escape(row['note'])}</small>" if row["note"] else ""
    if row["n"] < 2:
        return note
    ours, rival = row["links"]
    digits, what = (3, f"{METRICS[row['metric']]}: ") if row["metric"] else (2, "")
    effect = f"{what}{number(row['effect'], digits, signed=True)} {interval(row['low'], row['high'], True, digits)}"
    tested = f"{row['n']} pairs, {p_text(row['p_holm'])}"
    against = f'against <a href="{rival}">{escape(row["rival"])}</a>; {escape(tested)}'
    return f'<a href="{ours}">{effect}</a><small>{against}</small>{note}'
