"""Tables of the book, from the frame of records (one row per finished run): arms, paired comparisons, HTML, Markdown.

Errors are test errors in percent, differences in percentage points; lower is better.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from typing import Any
from urllib.parse import quote

import pandas as pd

from iekd.report.claims import SMALLEST
from iekd.report.labels import ARM, anchor, changes, label, method_name, record_link
from iekd.report.statistics import ALPHA, Outcome, Summary, holm, outcome, paired, summary

METRICS = {
    "last": "Test error after the last epoch",
    "val_selected": "Test error at the epoch selected on validation images",
    "best_on_test": "Best test error over all epochs (biased: selected on the test images)",
    "last_exact": "Test error after the last epoch, on test images that were not recompressed",
    "cka_halves": "CKA between the two halves of the student's feature",
    "rise_train": "Rise of the training loss under weight noise",
}
MEASURED = (
    "cka_inherit",
    "cka_explore",
    "cka_teacher",
    "rise_validation",
)  # by iekd.analysis.metrics, beside the two in METRICS
# Changes that leave the recipe what it is, so that the paper's value may stand beside ours.
_SAME_RECIPE = {"teachers", "evaluate_every"}
CHECKED = ' checked="checked"'
ERRORS = (
    "last",
    "val_selected",
    "best_on_test",
    "last_exact",
)  # of METRICS, those with a smallest difference of interest
SIGNS: dict[Outcome, str] = {
    "lower": "▼",
    "higher": "▲",
    "equivalent": "=",
    "inconclusive": "≈",
    "": "",
}
# What marks a run as unlike its arm, and the arms where it can be told: with fewer runs chance alone would mark some.
ROBUST_SDS, ENOUGH = 5, 10


# ---------------------------------------------------------------------- numbers


def arms(frame: pd.DataFrame, metric: str = "last") -> pd.DataFrame:
    """One row per arm with n, mean, sd and the 95 % interval (low, high) of the metric, in the order of appearance."""
    context = [c for c in ("role", "scope") if c in frame]
    rows = []
    for _, runs in frame.groupby([*context, *ARM], sort=False):
        first = runs.iloc[0].to_dict()
        named = {k: first[k] for k in [*ARM, "method", *context]}
        rows.append({**named, "label": label(first), **summary(runs[metric])._asdict()})
    return pd.DataFrame(rows)


def comparison(
    frame: pd.DataFrame, baseline: str = "supervised", metric: str = "last"
) -> pd.DataFrame:
    """`arms` of one `scope`, with the difference of each arm to the arm of variant `baseline`, paired by seed.

    Adds pairs, difference, difference_low, difference_high, p, p_holm (corrected over the arms of this table), outcome
    (`stats.outcome` by p_holm), baseline (is this arm the baseline?), paper and versus_paper (ours minus the paper's;
    NaN where the paper has no such cell).
    Raises `KeyError` if the baseline has no runs.
    """
    students = frame[frame["role"] == "student"]
    by_variant = {v: runs.set_index("seed")[metric] for v, runs in students.groupby("variant")}
    if baseline not in by_variant:
        raise KeyError(
            f"baseline {baseline!r} has no runs; there are {', '.join(by_variant) or 'none at all'}"
        )
    table = arms(frame, metric)
    nothing = pd.Series(dtype=float)  # the teacher and the baseline itself are not compared
    compared = (table["role"] == "student") & (table["variant"] != baseline)
    results = [
        paired(by_variant[v] if wanted else nothing, by_variant[baseline])
        for v, wanted in zip(table["variant"], compared, strict=True)
    ]
    columns = {"n": "pairs", "low": "difference_low", "high": "difference_high"}
    table = table.join(
        pd.DataFrame(results, index=table.index).drop(columns="sd").rename(columns=columns)
    )
    table["p_holm"] = holm(table["p"])
    bounds = [smallest(preset, metric) for preset in table["preset"]]
    table["outcome"] = list(map(outcome, results, table["p_holm"], bounds))
    table["baseline"] = (table["role"] == "student") & (table["variant"] == baseline)
    table["paper"] = [paper_value(row) for row in table.to_dict("records")]
    table["versus_paper"] = table["mean"] - table["paper"]
    return table


def smallest(preset: str, metric: str = "last") -> float:
    """The smallest difference of interest; 0, so that nothing is equivalent, for a metric that is no error: none was fixed."""
    return SMALLEST[preset] if metric in ERRORS else 0.0


def legend(preset: str) -> str:
    """What sign and word of a difference in error mean, as a sentence."""
    return (
        f"{SIGNS['lower']} lower, {SIGNS['higher']} higher: corrected p below {ALPHA:g}. Else {SIGNS['equivalent']} equivalent: "
        f"interval within ±{SMALLEST[preset]:g} points, the smallest difference of interest; or {SIGNS['inconclusive']} inconclusive."
    )


def outliers(frame: pd.DataFrame, metric: str = "last") -> str:
    """The runs that lie far from the median of their arm (by label), as a sentence; '' without any.

    Far: `ROBUST_SDS` robust standard deviations (1.4826 times the median absolute deviation), in arms of at least `ENOUGH` runs.
    """
    found = []
    for name, runs in frame.groupby("label", sort=False):
        values = runs.set_index("seed")[metric].dropna().astype(float)
        middle = values.median()
        distance = (values - middle).abs()
        far = (
            values[distance > ROBUST_SDS * 1.4826 * distance.median()]
            if len(values) >= ENOUGH
            else values[:0]
        )
        found += [
            f"{name}, seed {seed}: {number(value)} (median of the arm: {number(middle)})"
            for seed, value in far.items()
        ]
    if not found:
        return ""
    return f"More than {ROBUST_SDS} robust standard deviations from the median of its arm, and counted all the same: {'; '.join(found)}."


def paper_table() -> pd.DataFrame:
    """Table 1 of the paper's supplement: CIFAR-10 test error in percent, methods down, pairs across."""
    with (files("iekd.report") / "paper_table1.csv").open(encoding="utf-8") as source:
        return pd.read_csv(source, index_col="method")


def paper_value(row: Mapping[str, Any]) -> float:
    """The paper's error for an arm of a `scope`; NaN unless preset, data, pair and method are the paper's."""
    paper, pair = paper_table(), row["scope"]
    other_recipe = set(changes(row["variant"])) - _SAME_RECIPE
    if row["preset"] != "paper" or row["dataset"] != "cifar10" or pair not in paper or other_recipe:
        return float("nan")
    return float(paper[pair].get(paper_name(row), float("nan")))


def paper_name(row: Mapping[str, Any]) -> str:
    """What the paper's table calls the method of an arm of a `scope`."""
    own = "teacher" if row["role"] == "teacher" else "student"
    return own if row["method"] == "supervised" else method_name(row["method"])


# ---------------------------------------------------------------------- printing


def number(value: float, digits: int = 2, signed: bool = False) -> str:
    """A number for people: true minus sign, em dash for NaN."""
    if pd.isna(value):
        return "—"
    return f"{round(value, digits) + 0.0:{'+' if signed else ''}.{digits}f}".replace("-", "−")


def interval(low: float, high: float, signed: bool = False, digits: int = 2) -> str:
    """'[6.90, 7.34]', or 'no interval'."""
    return (
        "no interval"
        if pd.isna(low)
        else f"[{number(low, digits, signed)}, {number(high, digits, signed)}]"
    )


def p_text(p: float) -> str:
    """'p = 0.012', 'p < 0.001'."""
    return "p < 0.001" if p < 0.001 else f"p = {number(p, 3)}"


def spread(row: Mapping[str, Any]) -> str:
    return number(row["mean"]) + ("" if pd.isna(row["sd"]) else f" ± {number(row['sd'])}")


def difference_lines(row: Mapping[str, Any]) -> list[str]:
    """The lines of a difference cell: difference with sign and word; interval; pairs and p."""
    if row["baseline"]:
        return ["baseline"]
    if row["pairs"] == 0:
        return ["—"]
    limits = interval(row["difference_low"], row["difference_high"], signed=True)
    tested = "" if pd.isna(row["p_holm"]) else f", {p_text(row['p_holm'])}"
    difference = (
        f"{number(row['difference'], signed=True)} {SIGNS[row['outcome']]} {row['outcome']}".strip()
    )
    return [difference, limits, f"{row['pairs']} pairs{tested}"]


def _against_paper(row: Mapping[str, Any]) -> list[str]:
    if pd.isna(row["paper"]):
        return ["—"]
    return [number(row["paper"]), f"ours − paper: {number(row['versus_paper'], signed=True)}"]


def error_html(row: Mapping[str, Any]) -> str:
    """Mean and spread of an arm as a link to its records, then n and interval."""
    return summary_html(row, Summary(*(row[name] for name in Summary._fields)))


def summary_html(row: Mapping[str, Any], s: Summary, digits: int = 2) -> str:
    """The same for any summary over the runs of the arm that `row` is one of."""
    text = number(s.mean, digits) + ("" if pd.isna(s.sd) else f" ± {number(s.sd, digits)}")
    return f'<a href="{record_link(row)}">{text}</a><small>n = {s.n}, {interval(s.low, s.high, digits=digits)}</small>'


def record_html(path: str, value: float) -> str:
    """A number of one run as a link to its record; without a link where there is no number."""
    return (
        number(value)
        if pd.isna(value)
        else f'<a href="records/{quote(path)}.json">{number(value)}</a>'
    )


def lines_html(texts: list[str]) -> str:
    return "".join([escape(texts[0]), *(f"<small>{escape(t)}</small>" for t in texts[1:])])


def heads_html(*names: str) -> str:
    return "".join(f'<th scope="col">{escape(name)}</th>' for name in names)


def framed(caption: str, note: str, head: str, body: str, kind: str = "", foot: str = "") -> str:
    """An accessible table that scrolls sideways on a narrow screen; `head` and `body` are HTML rows, `foot` is what stands below it."""
    classes = f"ie-table {kind}".strip()
    table = (
        f'<div class="ie-table-scroll" role="region" tabindex="0" aria-label="{escape(caption)}">\n'
        f'<table class="{classes}"><caption><span>{escape(caption)}</span><small>{escape(note)}</small></caption>\n'
        f"<thead>{head}</thead>\n<tbody>\n{body}</tbody></table></div>\n"
    )
    return f'<div class="ie-block">{table}{foot}</div>\n' if foot else table


def tabs(panels: Mapping[str, str], legend: str) -> str:
    """Several tables (HTML by title) in one place: the first is shown, the others are a click or an arrow key away. Needs no JavaScript;
    without style sheets all are shown. One table stands as it is."""
    if len(panels) == 1:
        return next(iter(panels.values()))
    name = "tabs-" + hashlib.sha256("".join(panels.values()).encode()).hexdigest()[:10]
    choices = "".join(
        f'<input type="radio" name="{name}" id="{name}-{k}" autocomplete="off"{CHECKED if k == 0 else ""}/>'
        f'<label for="{name}-{k}">{escape(title)}</label>\n'
        for k, title in enumerate(panels)
    )
    panes = "".join(f'<div class="ie-pane">{panel}</div>\n' for panel in panels.values())
    return f'<fieldset class="ie-tabs"><legend>{escape(legend)}</legend>\n{choices}{panes}</fieldset>\n'


def foot(frame: pd.DataFrame, caption: str, command: str = "", remark: str = "") -> str:
    """What stands below every table of results: its data as CSV, the command that makes them, and a remark."""
    parts = [csv_link(frame, f"{_slug(caption)}.csv")] if len(frame) else []
    parts += [f"<span>Command: <code>{escape(command)}</code></span>"] if command else []
    parts += [f"<small>{escape(remark)}</small>"] if remark else []
    return f'<div class="ie-foot">{"".join(parts)}</div>\n'


def _slug(text: str) -> str:
    """A file's name for a caption."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60].rstrip("-")


def markdown(table: pd.DataFrame) -> str:
    """`arms` or `comparison`s for README and terminal, one pair below the other, without links."""
    compared = "baseline" in table
    heads = ["data set", "pair", "method", "n", "error, % (mean ± sd)", "95 % interval"]
    heads += ["minus baseline, points", "paper, %"] if compared else []
    lines = [heads, ["---"] * len(heads)]
    for row in table.to_dict("records"):
        ours = [str(row["n"]), spread(row), interval(row["low"], row["high"])]
        others = (
            ["; ".join(difference_lines(row)), "; ".join(_against_paper(row))] if compared else []
        )
        lines.append(
            [
                row["dataset"],
                row.get("scope", row["pair"]).replace("-", " → "),
                row["label"],
                *ours,
                *others,
            ]
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def record_index_html(frame: pd.DataFrame) -> str:
    """A section for every arm, its id the arm's `anchor`: the command, and for every seed errors and record."""
    sections = []
    for (preset, dataset, pair, variant), runs in frame.sort_values([*ARM, "seed"]).groupby(ARM):
        name = label(runs.iloc[0].to_dict()).replace("Student alone", "Trained alone")
        rows = "".join(map(_record_row, runs.to_dict("records")))
        title = f"{pair.replace('-', ' → ')}: {name}"
        head = heads_html("seed", "last, %", "selected, %", "best on test, %", "record")
        command = f"<p><code>{escape(runs['command'].iloc[0].rpartition(' ')[0])} SEED</code></p>"  # it ends with the seed
        table = framed(
            f"{title} ({preset}, {dataset})", "test error, one row a seed", f"<tr>{head}</tr>", rows
        )
        place = anchor(pair, variant, preset, dataset)
        sections.append(
            f'<section id="{place}"><h3>{escape(title)}</h3>\n{command}\n{table}</section>\n'
        )
    return "".join(sections)


def _record_row(row: Mapping[str, Any]) -> str:
    errors = "".join(f"<td>{number(row[m])}</td>" for m in ("last", "val_selected", "best_on_test"))
    record = f'<a href="records/{quote(row["path"])}.json">{row["hash"]}</a>'
    return f'<tr><th scope="row">{row["seed"]}</th>{errors}<td>{record}</td></tr>\n'


def csv_link(frame: pd.DataFrame, name: str = "runs.csv") -> str:
    """A download link that carries the data of a table within the page: of runs one row each (about 150 bytes), else the whole frame."""
    runs = "hash" in frame
    if runs:
        frame = frame[
            [
                c
                for c in (*ARM, "seed", *METRICS, *MEASURED, "seconds", "device", "hash")
                if c in frame
            ]
        ]
        frame = frame.dropna(axis="columns", how="all")
    data = base64.b64encode(frame.to_csv(index=False, float_format="%.6g").encode()).decode()
    text = f"CSV of the {len(frame)} runs" if runs else "CSV"
    return f'<a class="ie-download" download="{escape(name)}" href="data:text/csv;base64,{data}">{text}</a>'
