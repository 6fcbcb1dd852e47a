"""The paper's claims, and what the records say of each.

Sources are tags: T the paper's supplement (first-hand), B blog posts that describe the paper (second-hand), A an
unreviewed summary of the paper (second-hand), X our own reading.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from iekd.arms import label, record_link, runs_of
from iekd.config import PRESETS, ConfigError, RunConfig
from iekd.stats import Paired, holm, paired, verdict
from iekd.tables import METRICS, foot, framed, interval, number, p_text

TRUST = {
    "T": "the paper's supplement",
    "B": "as reported second-hand (blog)",
    "A": "as reported second-hand",
    "X": "our reading",
}
TEACHER: dict[str, Any] = {"role": "teacher"}  # the arm "the teacher of a"
CONFIRMATORY = 100  # the first confirmatory seed; smaller ones are the pilot, seen before the protocol was fixed
PILOT = "pilot seeds only, seen before the protocol was fixed"
# The smallest difference of interest, in percentage points (the book's protocol says why), by preset.
SMALLEST = {"smoke": 0.5, "class": 0.5, "paper": 0.2}
NO_RUNS, TOO_FEW, NO_ANALYSIS = "no runs yet", "fewer than two common seeds", "no analysed runs yet"
Arm = tuple[dict[str, Any] | None, pd.Series, str]


@dataclass(frozen=True)
class Claim:
    """The claim that arm `a` has a lower error than arm `b` (several: than every one of `b`).

    Arms name the fields that differ from the preset. `fields` hold for all arms; `swapped` exchanges teacher and
    student of the preset. A claim about another quantity than the error names its column in `metric` (see
    `iekd.analysis`). Without `a` there is nothing yet that could test the claim.
    """

    id: str
    source: str
    sentence: str
    a: dict[str, Any] | None = None
    b: tuple[dict[str, Any], ...] = ()
    fields: dict[str, Any] = field(default_factory=dict)
    swapped: bool = False
    metric: str = ""


def _method(name: str) -> dict[str, Any]:
    return {"method": name}


def _ie(**fields: Any) -> dict[str, Any]:
    return {"method": "ie-ft", **fields}


# The rivals of the claims about what is best, as the sources list them.
OTHER_MEASURES = (
    *(_ie(inherit=measure) for measure in ("l2", "cosine", "partial-l2")),
    *(_ie(explore=measure) for measure in ("l2", "partial-l2", "orthogonal", "cka")),
)
OTHER_SPLITS = tuple(_ie(split_ratio=ratio) for ratio in (0.0, 0.25, 0.75, 1.0))
OTHER_WEIGHTS = tuple(_ie(inherit_weight=w, explore_weight=w) for w in (1.0, 5.0, 10.0, 100.0, 500.0))
# The sources do not say what IE was compared with. FT is its base; inheritance alone differs from it by nothing but exploration.
WITHOUT_EXPLORATION = (_method("ft"), _ie(explore="none"))
BOLD_PAIR = {"dataset": "cifar10", "teacher": "resnet56", "student": "resnet20"}

CLAIMS = (
    Claim("ie-ft", "T", "IE-FT ends with a lower error than FT.", _ie(), (_method("ft"),)),
    # FT's published weight is ten times IE-FT's: the pair above differs in weight as well as in method, this one does not.
    Claim("ie-ft-weight", "X", "Exploration helps FT at FT's own weight: IE-FT with inheritance weight 500 ends below FT.",
          _ie(inherit_weight=500.0), (_method("ft"),)),
    Claim("ie-at", "T", "IE-AT ends with a lower error than AT.", _method("ie-at"), (_method("at"),)),
    Claim("ie-od", "T", "IE-OD ends with a lower error than OD.", _method("ie-od"), (_method("od"),)),
    Claim("below-teacher", "T", "ResNet-20 taught by ResNet-56 with IE-FT ends below its teacher's error on CIFAR-10.",
          _ie(), (TEACHER,), BOLD_PAIR),
    Claim("exploration", "X", "Exploration adds to inheritance: both losses together beat inheritance alone.",
          _ie(), (_ie(explore="none"),)),
    Claim("inheritance", "X", "Inheritance adds to exploration: both losses together beat exploration alone.",
          _ie(), (_ie(inherit="none"),)),
    Claim("measure", "A", "L1 is the best similarity measure.", _ie(), OTHER_MEASURES),
    Claim("split", "A", "Splitting the channels 50/50 is best.", _ie(), OTHER_SPLITS),
    Claim("weights", "A", "The weights 50 and 50 are best.", _ie(), OTHER_WEIGHTS),
    Claim("small-teacher", "B", "A small teacher helps a large student with IE: it ends below the same student alone.",
          _ie(), (_method("supervised"),), swapped=True),
    Claim("small-teacher-kd", "B", "Plain KD from a small teacher harms a large student.",
          _method("supervised"), (_method("kd"),), swapped=True),
    Claim("ie-dml", "A", "IE-DML ends with a lower error than DML.", _method("ie-dml"), (_method("dml"),)),
    Claim("diversity", "A", "IE makes the features more diverse (lower CKA between them).",
          _ie(), WITHOUT_EXPLORATION, metric="cka_halves"),
    Claim("flatness", "A", "IE finds flatter minima (the loss grows less under Gaussian noise on the weights).",
          _ie(), WITHOUT_EXPLORATION, metric="rise_train"),
    Claim("imagenet", "A", "On ImageNet, ResNet-34 to ResNet-18, IE-KD lowers top-1 error from 29.91 to 28.19 %."),
    Claim("voc", "A", "On PASCAL VOC detection, IE raises the mAP from 71.61 to 73.51."),
)  # fmt: skip


def decisive(runs: pd.DataFrame, configs: Sequence[RunConfig]) -> pd.DataFrame:
    """Of some arms' runs those on confirmatory seeds, if every arm has at least two; else those on the pilot's seeds."""
    of_an_arm = runs[runs["variant"].isin([c.variant for c in configs])]
    late = of_an_arm[of_an_arm["seed"] >= CONFIRMATORY]
    counts = late.groupby("variant")["seed"].nunique()
    enough = all(counts.get(c.variant, 0) >= 2 for c in configs)
    return (late if enough else of_an_arm[of_an_arm["seed"] < CONFIRMATORY]).reset_index(drop=True)


def phase(runs: pd.DataFrame) -> str:
    """Which seeds these runs have, as a sentence."""
    if runs.empty:
        return f"There are {NO_RUNS}."
    numbers = f"seeds {runs['seed'].min()} to {runs['seed'].max()}"
    kind = "confirmatory runs" if runs["seed"].min() >= CONFIRMATORY else "runs of the pilot, seen before the protocol was fixed"
    return f"These are {len(runs)} {kind} ({numbers})."


class Tested(NamedTuple):
    """What decides a claim: the comparison with one rival, its p within the claim, and what to say beside it."""

    result: Paired
    p: float
    rival: str
    note: str
    complete: bool
    links: tuple[str, ...]


def board(
    frame: pd.DataFrame, preset: str = "class", claims: tuple[Claim, ...] = CLAIMS, metric: str = "last", **setting: Any
) -> pd.DataFrame:
    """One row per claim: id, preset, sentence, source, verdict, metric ('' = test error), effect (a - b, percentage points or the unit
    of that metric), low, high, n (pairs), p, p_holm (corrected over the tested claims), rival, note, links. `setting` changes
    fields of the preset in every arm, `metric` the column that claims about errors look at. Confirmatory seeds decide; a claim
    without them is judged by the pilot's, and its note says so.

    A claim against many is decided by one rival. If some rival has the lower mean error, it is the one with the
    smallest p, Holm-corrected within the claim: significant means "not reproduced". Otherwise it is the one with the
    largest p: "reproduced" only if a is significantly better than every one, and every one was run.
    """
    tested = [_confirmed(frame, claim, preset, claim.metric or metric, setting) for claim in claims]
    corrected = holm(t.p for t in tested)
    return pd.DataFrame([_row(c, t, p, preset) for c, t, p in zip(claims, tested, corrected, strict=True)])


def _row(claim: Claim, tested: Tested, p_holm: float, preset: str) -> dict[str, Any]:
    word, result, note, smallest = verdict(tested.result, -1, p_holm), tested.result, tested.note, SMALLEST[preset]
    if word == "not distinguishable" and not claim.metric and max(-result.low, result.high) < smallest:
        note = "; ".join(filter(None, (f"no difference of interest (interval within ±{smallest:g})", note)))
    if word == "reproduced" and not tested.complete:  # better than those tried is not better than all
        word = "not tested"
    about = {"id": claim.id, "preset": preset, "sentence": claim.sentence, "source": claim.source, "verdict": word, "metric": claim.metric}
    effect = {"effect": result.difference, "low": result.low, "high": result.high, "n": result.n}
    shown = {"rival": tested.rival, "note": note, "links": tested.links}
    return {**about, **effect, "p": tested.p, "p_holm": p_holm, **shown}


def _confirmed(frame: pd.DataFrame, claim: Claim, preset: str, metric: str, setting: dict[str, Any]) -> Tested:
    """The test on confirmatory seeds, else on the pilot's."""
    if frame.empty or preset != "class":  # only class scale had a pilot
        return _test(frame, claim, preset, metric, setting)
    late = frame[(frame["seed"] >= CONFIRMATORY) | (frame["method"] == "supervised")]  # pilot and confirmation share the teachers
    tested = _test(late, claim, preset, metric, setting)
    if tested.result.n >= 2:
        return tested
    pilot = _test(frame[frame["seed"] < CONFIRMATORY], claim, preset, metric, setting)
    if pilot.result.n >= 2:
        return pilot._replace(note="; ".join(filter(None, (pilot.note, PILOT))))
    return tested if tested.note == TOO_FEW else pilot  # of two that say nothing, the one that says more


def _test(frame: pd.DataFrame, claim: Claim, preset: str, metric: str, setting: dict[str, Any]) -> Tested:
    """Compare the claim's arms and pick the rival that decides."""
    absent = NO_ANALYSIS if claim.metric else NO_RUNS
    nothing = Tested(Paired(0, *[np.nan] * 5), np.nan, "", absent, False, ())
    if claim.a is None:
        return nothing
    common = {**setting, **_swap(preset, setting, claim.swapped), **claim.fields}
    ours, a, link = _errors(frame, preset, {**common, **claim.a}, metric)
    if ours is None:
        return nothing
    rivals = [_rival(frame, claim, b, preset, common, metric) for b in claim.b]
    results = [(paired(a, b), run, rival_link) for run, b, rival_link in rivals if run is not None]
    results = [r for r in results if r[0].n >= 2]
    if not results:
        return nothing._replace(note=absent if all(run is None for run, _, _ in rivals) else TOO_FEW)
    within = holm(r.p for r, _, _ in results)
    k = _decisive([r for r, _, _ in results], within)
    note = "" if len(claim.b) == 1 else f"compared with {len(results)} of {len(claim.b)}; shown: the one that decides"
    result, run, rival_link = results[k]
    return Tested(result, float(within[k]), label(run), note, len(results) == len(claim.b), (link, rival_link))


def _rival(frame: pd.DataFrame, claim: Claim, b: dict[str, Any], preset: str, common: dict[str, Any], metric: str) -> Arm:
    """The arm `b`; for `TEACHER` the teacher of arm a."""
    fields = claim.a if b is TEACHER else b
    return _errors(frame, preset, {**common, **fields}, metric, of_teacher=b is TEACHER)


def _decisive(results: list[Paired], within: np.ndarray) -> int:
    """Index of the comparison that decides a claim against many (see `board`)."""
    p = np.where(np.isnan(within), 1.0, within)
    against = [i for i, r in enumerate(results) if r.difference >= 0]
    return min(against, key=lambda i: p[i]) if against else int(np.argmax(p))


def _swap(preset: str, setting: dict[str, Any], swapped: bool) -> dict[str, Any]:
    """The pair; swapped, its small teacher is trained no longer than the large student, or it might be the better of the two."""
    pair = {k: setting.get(k, PRESETS[preset][k]) for k in ("teacher", "student")}
    if not swapped:
        return pair
    return {"teacher": pair["student"], "student": pair["teacher"], "teacher_epochs": PRESETS[preset]["epochs"]}


def _errors(frame: pd.DataFrame, preset: str, fields: dict[str, Any], metric: str, of_teacher: bool = False) -> Arm:
    """First run of an arm (None if there is none), its errors by seed, and the address of its records.

    For the teacher the errors are indexed by the student's seed: seed k learned from teacher k mod `teachers`.
    """
    none = None, pd.Series(dtype=float), ""
    try:
        config = RunConfig.create(preset, **fields)
    except ConfigError:  # a method or data set that this version does not have
        return none
    runs = runs_of(frame, config.teacher_run() if of_teacher else config) if len(frame) else frame
    if runs.empty or metric not in runs or runs[metric].isna().all():  # no runs, or not analysed
        return none
    errors, first = runs.set_index("seed")[metric], runs.iloc[0].to_dict()
    if of_teacher:
        seeds = runs_of(frame, config)["seed"]
        errors = pd.Series({k: errors.get(k % config.teachers, np.nan) for k in seeds}, dtype=float)
        first["role"] = "teacher"
    return first, errors, record_link(first)


SWEEPS = {"class": "iekd sweep runs/*.yaml", "paper": "iekd sweep runs/paper/*.yaml"}  # all grids of a preset
SIGNS = {"reproduced": "✔", "not reproduced": "✘", "not distinguishable": "≈", "not tested": "○"}


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
        "Effect: difference in test error in percentage points, or in the quantity that is named, paired by seed, with its "
        "95 % interval; negative is in favour of the claim. Reproduced or not: p below 0.05, Holm-corrected over the tested claims. Not "
        "distinguishable is a result, but no proof of equality."
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
