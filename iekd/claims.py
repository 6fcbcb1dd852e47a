"""The paper's claims, and what the records say of each.

Sources are the tags of the project's page of facts: T the paper's supplement (first-hand), B a blog post that describes the paper
(second-hand), A an unreviewed summary (second-hand), X our own reading.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from iekd import tables
from iekd.config import PRESETS, ConfigError, RunConfig
from iekd.stats import Paired, holm, paired, verdict

TRUST = {
    "T": "the paper's supplement",
    "B": "as reported second-hand (blog)",
    "A": "as reported second-hand",
    "X": "our reading",
}
TEACHER: dict[str, Any] = {"role": "teacher"}  # the arm "the teacher of a"
IE_FT: dict[str, Any] = {"method": "ie-ft"}
NO_RUNS = "no runs yet"


@dataclass(frozen=True)
class Claim:
    """The claim that arm `a` has a lower error than arm `b` (several: than every one of `b`).

    Arms name the fields that differ from the preset. `fields` hold for all arms; `swapped` exchanges teacher and student of
    the preset. Without `a` there is nothing yet that could test the claim.
    """

    id: str
    sentence: str
    source: str
    a: dict[str, Any] | None = None
    b: tuple[dict[str, Any], ...] = ()
    fields: dict[str, Any] = field(default_factory=dict)
    swapped: bool = False


def _ie(**fields: Any) -> dict[str, Any]:
    return {**IE_FT, **fields}


CLAIMS = (
    Claim("ie-ft", "IE-FT ends with a lower error than FT.", "T", IE_FT, ({"method": "ft"},)),
    Claim("ie-at", "IE-AT ends with a lower error than AT.", "T", {"method": "ie-at"}, ({"method": "at"},)),
    Claim("ie-od", "IE-OD ends with a lower error than OD.", "T", {"method": "ie-od"}, ({"method": "od"},)),
    Claim(
        "below-teacher", "ResNet-20 taught by ResNet-56 with IE-FT ends below its teacher's error on CIFAR-10.", "T", IE_FT, (TEACHER,),
        fields={"dataset": "cifar10", "teacher": "resnet56", "student": "resnet20"},
    ),
    Claim("exploration", "Exploration adds to inheritance: both losses beat inheritance alone.", "X", IE_FT, (_ie(explore="none"),)),
    Claim("inheritance", "Inheritance adds to exploration: both losses beat exploration alone.", "X", IE_FT, (_ie(inherit="none"),)),
    Claim(
        "measure", "L1 is the best similarity measure, for inheritance and for exploration.", "A", IE_FT,
        (*(_ie(inherit=m) for m in ("l2", "cosine", "partial-l2")), *(_ie(explore=m) for m in ("l2", "partial-l2", "orthogonal", "cka"))),
    ),
    Claim("split", "Splitting the channels 50/50 is best.", "A", IE_FT, tuple(_ie(split_ratio=r) for r in (0.0, 0.25, 0.75, 1.0))),
    Claim(
        "weights", "The weights 50 and 50 are best.", "A", IE_FT,
        tuple(_ie(inherit_weight=w, explore_weight=w) for w in (1.0, 5.0, 10.0, 100.0, 500.0)),
    ),
    Claim(
        "small-teacher", "A small teacher helps a large student with IE: it ends below the same student trained alone.", "B", IE_FT,
        ({"method": "supervised"},), swapped=True,
    ),
    Claim(
        "small-teacher-kd", "Plain KD from a small teacher harms a large student.", "B", {"method": "supervised"},
        ({"method": "kd"},), swapped=True,
    ),
    Claim("ie-dml", "IE-DML ends with a lower error than DML.", "A", {"method": "ie-dml"}, ({"method": "dml"},)),
    Claim("diversity", "IE makes features more diverse (lower CKA between them).", "A"),
    Claim("flatness", "IE finds flatter minima (the loss grows less under Gaussian noise on the weights).", "A"),
    Claim("imagenet", "On ImageNet, ResNet-34 to ResNet-18, IE-KD lowers the top-1 error from 29.91 to 28.19 %.", "A"),
    Claim("voc", "On PASCAL VOC detection, IE raises the mAP from 71.61 to 73.51.", "A"),
)  # fmt: skip


class Tested(NamedTuple):
    """What decides a claim: the comparison with one rival, its p within the claim, and what to say beside it."""

    result: Paired
    p: float
    rival: str
    note: str
    complete: bool
    links: tuple[str, ...]


def board(frame: pd.DataFrame, preset: str = "class", claims: tuple[Claim, ...] = CLAIMS, metric: str = "last", **setting: Any) -> pd.DataFrame:
    """One row per claim: id, sentence, source, verdict, effect (a - b in percentage points), low, high, n (pairs), p, p_holm, rival,
    note, links. p_holm is corrected over the tested claims; `setting` changes fields of the preset in every arm.

    A claim against many is decided by one rival. If some rival has the lower mean error, it is the one with the smallest p,
    Holm-corrected within the claim: significant means "not reproduced". Otherwise it is the one with the largest p: "reproduced"
    only if a is better than every one, and every one was run.
    """
    tested = [_test(frame, claim, preset, metric, setting) for claim in claims]
    corrected = holm(t.p for t in tested)
    return pd.DataFrame([_row(c, t, p) for c, t, p in zip(claims, tested, corrected, strict=True)])


def _row(claim: Claim, tested: Tested, p_holm: float) -> dict[str, Any]:
    word, result = verdict(tested.result, -1, p_holm), tested.result
    if word == "reproduced" and not tested.complete:  # better than those tried is not better than all
        word = "not tested"
    return {
        "id": claim.id, "sentence": claim.sentence, "source": claim.source, "verdict": word, "effect": result.difference,
        "low": result.low, "high": result.high, "n": result.n, "p": tested.p, "p_holm": p_holm, "rival": tested.rival,
        "note": tested.note, "links": tested.links,
    }  # fmt: skip


def _test(frame: pd.DataFrame, claim: Claim, preset: str, metric: str, setting: dict[str, Any]) -> Tested:
    """Compare the claim's arms and pick the rival that decides."""
    nothing = Tested(Paired(0, *[np.nan] * 5), np.nan, "", NO_RUNS, False, ())
    if claim.a is None:
        return nothing
    common = {**setting, **_swap(preset, setting, claim.swapped), **claim.fields}
    ours, a, link = _errors(frame, preset, {**common, **claim.a}, metric)
    if ours is None:
        return nothing
    rivals = [_errors(frame, preset, {**common, **(claim.a if b is TEACHER else b)}, metric, b is TEACHER) for b in claim.b]
    results = [(paired(a, b), rivals_link, runs) for runs, b, rivals_link in rivals]
    results = [r for r in results if r[0].n >= 2]
    if not results:
        return nothing._replace(note=NO_RUNS if all(r[0] is None for r in rivals) else "fewer than two common seeds")
    within = holm(r.p for r, _, _ in results)
    k = _decisive([r for r, _, _ in results], within)
    note = "" if len(claim.b) == 1 else f"compared with {len(results)} of {len(claim.b)}; shown: the one that decides"
    result, rival_link, runs = results[k]
    return Tested(result, float(within[k]), tables.label(runs), note, len(results) == len(claim.b), (link, rival_link))


def _decisive(results: list[Paired], within: np.ndarray) -> int:
    """Index of the comparison that decides a claim against many (see `board`)."""
    p = np.where(np.isnan(within), 1.0, within)
    against = [i for i, r in enumerate(results) if r.difference >= 0]
    return min(against, key=lambda i: p[i]) if against else int(np.argmax(p))


def _swap(preset: str, setting: dict[str, Any], swapped: bool) -> dict[str, Any]:
    pair = {k: setting.get(k, PRESETS[preset][k]) for k in ("teacher", "student")}
    return {"teacher": pair["student"], "student": pair["teacher"]} if swapped else pair


def _errors(
    frame: pd.DataFrame, preset: str, fields: dict[str, Any], metric: str, of_teacher: bool = False
) -> tuple[dict[str, Any] | None, pd.Series, str]:
    """First run of an arm (None if it has none), its errors by seed, and the address of its records.

    For the teacher the errors are indexed by the student's seed: seed k learned from teacher k mod `teachers`.
    """
    none = None, pd.Series(dtype=float), ""
    try:
        config = RunConfig.create(preset, **fields)
    except ConfigError:  # a method or data set that this version does not have
        return none
    runs = tables.runs_of(frame, config.teacher_run() if of_teacher else config) if len(frame) else frame
    if runs.empty:
        return none
    errors, first = runs.set_index("seed")[metric], runs.iloc[0].to_dict()
    if of_teacher:
        seeds = tables.runs_of(frame, config)["seed"]
        errors = pd.Series({k: errors.get(k % config.teachers, np.nan) for k in seeds}, dtype=float)
        first["role"] = "teacher"
    return first, errors, tables.record_link(first)


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
        "Effect: difference in test error, percentage points, paired by seed, with its 95 % interval; negative is in favour of the claim. "
        "Reproduced or not: Holm-corrected p below 0.05 over the tested claims. Not distinguishable is no proof of equality."
    )
    return (
        f'<div class="ie-table-scroll" role="region" tabindex="0" aria-label="{escape(caption)}"><table class="ie-table ie-board">\n'
        f"<caption>{escape(caption)}<small>{escape(note)}</small></caption>\n"
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>"
    )


def _evidence(row: dict[str, Any]) -> str:
    note = f"<small>{escape(row['note'])}</small>" if row["note"] else ""
    if row["n"] < 2:
        return note
    ours, rival = row["links"]
    effect = f"{tables.number(row['effect'], signed=True)} {tables.interval(row['low'], row['high'], signed=True)}"
    tested = f"{row['n']} pairs, {tables.p_text(row['p_holm'])}"
    return f'<a href="{ours}">{effect}</a><small>against <a href="{rival}">{escape(row["rival"])}</a>; {tested}</small>{note}'
