"""What the records say about the claims: one verdict per claim, and the board that shows them."""

from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from iekd.config import RunConfig
from iekd.report import html, tuning
from iekd.report.claims import CLAIMS, FAMILIES, PLANNED, SMALLEST, TEACHER, TRUST, Claim
from iekd.report.comparison import METRICS, smallest
from iekd.report.contrast import Contrast, Tested, examine, kept
from iekd.report.html import Cell
from iekd.report.labels import label
from iekd.report.phrases import difference, p_text
from iekd.report.statistics import Paired, holm, outcome
from iekd.report.tables import foot

# The command that makes the runs of all grids of a preset.
SWEEPS = {"class": "iekd sweep runs/*.yaml", "paper": "iekd sweep runs/paper/*.yaml"}
# What an outcome (`statistics.outcome`) means for a claim of "lower", and for the paper's claims
# about its own pair and recipe.
WORDS = {"lower": "supported", "higher": "contradicted"}
PAPERS_OWN = {"lower": "reproduced", "higher": "not reproduced"}
# The verdicts and their signs.
SIGNS = dict.fromkeys(("supported", "reproduced"), "✔")
SIGNS |= dict.fromkeys(("contradicted", "not reproduced"), "✘")
SIGNS |= {"equivalent": "=", "inconclusive": "≈", "open": "…", "not tested": "○"}


def board(
    frame: pd.DataFrame,
    preset: str = "class",
    claims: Sequence[Claim] = CLAIMS,
    metric: str = "last",
    **setting: Any,
) -> pd.DataFrame:
    """One row per claim: its verdict, by `decisive` and `decide`, and the contrast that decides.

    Columns: id, preset, sentence, source, verdict, metric ('' = test error), effect (a - b,
    percentage points or the unit of that metric), low, high, n (pairs; against the teacher, a pair
    is a teacher with its students), p, p_holm (corrected over the tested claims; an open one has
    neither), two_versions (pairs made with different versions of PyTorch), rival, note, links, kept
    (`contrast.kept`). `setting` changes fields of the preset in every arm, `metric` the column that
    claims about errors use.

    An outcome is in favour of the claim, "supported", or against it, "contradicted"; or
    "reproduced" and "not reproduced" where the paper claims it for its own pair and recipe (preset
    paper, no `setting`) and the arm is not `rebuilt`.
    """
    tested = [examine(frame, claim, preset, metric, **setting) for claim in claims]
    shown = [decisive(t.contrasts) if t.contrasts else (0, np.nan) for t in tested]
    corrected = holm(p for _, p in shown)
    rows = []
    for claim, test, (index, p), p_holm in zip(claims, tested, shown, corrected, strict=True):
        bound = smallest(preset, claim.metric or "last")
        planned = claim.planned or PLANNED[preset]
        verdict, missing = decide(test, index, p_holm, planned, bound)
        if verdict == "open":  # a test that is looked at after every seed finds something too often
            p = p_holm = np.nan
        if preset == "paper" and claim.source != "X" and not (setting or claim.rebuilt):
            verdict = PAPERS_OWN.get(verdict, verdict)
        row = {"id": claim.id, "preset": preset, "sentence": claim.sentence, "source": claim.source}
        row |= {"verdict": WORDS.get(verdict, verdict), "metric": claim.metric}
        row |= {"kept": kept(frame, claim, preset, **setting)}
        rows.append(row | _evidence_of(test, index, p, p_holm))
        if test.contrasts:
            remarks = [missing, test.note]
            if not missing:
                remarks += [_other(test.contrasts, index, 3 if claim.metric else 2)]
                remarks += [_size(verdict, test.contrasts[index].result, bound)]
            remarks += [claim.caveat]
            rows[-1]["note"] = "; ".join(filter(None, remarks))
    return pd.DataFrame(rows)


def decisive(contrasts: Sequence[Contrast]) -> tuple[int, float]:
    """Which rival decides a claim against several: its index and its p, Holm-corrected over them.

    If some rival has the lower mean error, it is the one with the smallest p: significant means
    contradicted. Otherwise it is the one with the largest p: supported only if the claim's arm is
    significantly better than every one.
    """
    within = holm(c.result.p for c in contrasts)
    p = np.nan_to_num(within, nan=1.0)
    better = [i for i, c in enumerate(contrasts) if c.result.difference >= 0]
    if better:
        index = min(better, key=lambda i: (p[i], -contrasts[i].result.difference))
    else:
        index = int(np.argmax(p))
    return index, within[index]


def decide(tested: Tested, index: int, p: float, planned: int, bound: float) -> tuple[str, str]:
    """The outcome by the decisive contrast, "open" or "not tested"; and what it still lacks.

    A better rival settles a claim, whatever the others show. Otherwise every arm needs its planned
    seeds, every rival must have runs, and only an arm equivalent to every rival is equivalent. The
    pilot's seeds, which are shown if there are no others, are too few to decide.
    """
    if not tested.contrasts:
        return "not tested", ""
    shown = tested.contrasts[index]
    everywhere = all(max(-c.result.low, c.result.high) < bound for c in tested.contrasts)
    found = outcome(shown.result, p, bound if everywhere else 0.0)
    needed = [shown] if found == "higher" else tested.contrasts
    students = min(c.students for c in needed)
    if students < planned:
        return "open", f"{students} of {planned} planned seeds: no verdict yet"
    if found != "higher" and not tested.complete:
        return "open", "not every rival was run: no verdict yet"
    return found, ""


def _evidence_of(tested: Tested, index: int, p: float, p_holm: float) -> dict[str, Any]:
    """The columns of the board about the decisive contrast."""
    if not tested.contrasts:
        nothing = dict.fromkeys(("effect", "low", "high", "p", "p_holm"), np.nan)
        nothing |= {"n": 0, "two_versions": 0}
        return {**nothing, "rival": "", "note": tested.note, "links": ()}
    shown = tested.contrasts[index]
    n, effect, _, low, high, _ = shown.result
    about = {"effect": effect, "low": low, "high": high, "n": n, "p": p, "p_holm": p_holm}
    about["two_versions"] = shown.two_versions
    return {**about, "rival": shown.rival, "note": "", "links": shown.links}


def _other(contrasts: Sequence[Contrast], index: int, digits: int) -> str:
    """Of two rivals, the one that does not decide, in numbers."""
    if len(contrasts) != 2:
        return ""
    other = contrasts[1 - index]
    p = holm(c.result.p for c in contrasts)[1 - index]
    effect = f"{difference(other.result, digits)}, {p_text(p)}"
    return f"against the other rival, {other.rival}: {effect} (corrected over the two)"


def _size(verdict: str, result: Paired, bound: float) -> str:
    """How a difference compares with the smallest one of interest (`bound`), if there is one."""
    if verdict == "equivalent":
        return f"interval within ±{bound:g}"
    if verdict == "inconclusive" or min(abs(result.low), abs(result.high)) >= bound:
        return ""
    return f"may be smaller than what is of interest (±{bound:g})"


def board_html(table: pd.DataFrame, caption: str, command: str = "") -> Markup:
    """The board as a table: claim, verdict (sign and word), evidence with links, source.

    Some claims of a family, which repeat its board, are folded. `command` makes the runs.
    """
    preset = table["preset"].iloc[0]
    rows = []
    for row in table.to_dict("records"):
        verdict = row["verdict"]
        kind = f"verdict {verdict.replace(' ', '-')}"
        about = [f"{row['preset']} scale", *_regime(row)]
        word = Cell(f"{SIGNS[verdict]} {verdict}", about, kind)
        cells = word, _evidence(row), TRUST[row["source"]]
        rows.append(html.row(row["sentence"], *cells, id=f"claim-{row['id']}"))
    within = f"within ±{SMALLEST[preset]:g} points, for every rival"
    equal = f"equivalent: interval of a difference in error {within}; or "
    equal = equal if (table["metric"] == "").any() else ""
    note = (
        "Effect: difference in test error (percentage points) or in the quantity named, paired by "
        "seed (by teacher where the rival is the teacher), with its uncorrected 95 % interval; "
        "negative favours the claim. Supported or contradicted (for the paper's own recipe: "
        "reproduced or not reproduced): p below 0.05, Holm-corrected over a claim's rivals and "
        f"then over all tested claims. Otherwise {equal}inconclusive, which does not prove "
        "equality. Open: planned seeds are missing. Under-fit: the training error of the student "
        "alone (or, if that was not recorded, of the students of its pair) is more than half its "
        "test error."
    )
    size = tuning.size_note(usual_configs(preset, set(table["id"])))
    command = command or SWEEPS.get(preset, "")
    mixed, all_pairs = table["two_versions"].sum(), table["n"].sum()
    versions = (
        f"In {mixed} of the {all_pairs} pairs the two runs have different versions of PyTorch."
    )
    remark = " ".join(filter(None, (size, versions if mixed else "")))
    below = foot(table.drop(columns="links"), caption, command, remark)
    heads = ["claim", "verdict", "evidence", "source of the claim"]
    found = html.table(caption, note, heads, rows, "ie-wrap ie-cards ie-board", below)
    whole = [{claim.id for claim in family} for family in FAMILIES.values()]
    return found if set(table["id"]) in whole else html.folded(f"{caption}: verdicts", found)


def usual_configs(preset: str, ids: Container[str]) -> list[RunConfig]:
    """The methods that the claims with these ids are about, at their usual weights; except for
    claims about other data sets, whose feature maps have other shapes.
    """
    about = [claim for claim in CLAIMS if claim.id in ids]
    named = [arm for claim in about if claim.a for arm in (claim.a, *claim.b)]
    methods = dict.fromkeys(arm["method"] for arm in named if arm != TEACHER)
    return [RunConfig.create(preset, method=method) for method in methods]


def _regime(row: Mapping[str, Any]) -> list[str]:
    """What goes below a verdict whose student under-fits."""
    return ["under-fit"] if row["kept"] > 0.5 and row["verdict"] != "not tested" else []


def pairs(row: Mapping[str, Any]) -> str:
    """'20 pairs, p = 0.012', for a row of the board; an open claim has no p."""
    unit = "teachers" if row["rival"] == label(TEACHER) else "pairs"
    return f"{row['n']} {unit}" + ("" if pd.isna(row["p_holm"]) else f", {p_text(row['p_holm'])}")


def _evidence(row: dict[str, Any]) -> Cell:
    notes = [row["note"]] if row["note"] else []
    if row["n"] < 2:
        return Cell("", notes)
    ours, rival = row["links"]
    digits, what = (3, f"{METRICS[row['metric']]}: ") if row["metric"] else (2, "")
    result = Paired(row["n"], row["effect"], np.nan, row["low"], row["high"], row["p"])
    against = Markup("against {}; {}").format(html.link(row["rival"], rival), pairs(row))
    return Cell(what + difference(result, digits), [against, *notes], href=ours)
