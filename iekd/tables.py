"""Tables of the book, from the frame of records (one row per finished run): arms, paired comparisons, HTML and Markdown.

An arm is what is left of a run when the seed is taken away: (preset, dataset, pair, variant). Errors are test errors in percent,
differences in percentage points; lower is better.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from typing import Any
from urllib.parse import quote

import pandas as pd

from iekd.config import RunConfig
from iekd.stats import holm, paired, summary

ARM = ["preset", "dataset", "pair", "variant"]
METRICS = {
    "last": "test error after the last epoch",
    "val_selected": "test error at the epoch selected on validation images",
    "best_on_test": "best test error over all epochs (biased: selected on the test images)",
    "last_exact": "test error after the last epoch, on test images that were not recompressed",
}
METHODS = {"supervised": "Student alone", "factor-ae": "Factor auto-encoder"}  # the others are their name in capitals
MEASURES = {"l1": "L1", "l2": "L2", "cosine": "cosine", "partial-l2": "partial L2", "orthogonal": "orthogonal", "cka": "CKA"}
_CHANGE = re.compile(r"-([a-z_]+)=(.+?)(?=-[a-z_]+=|$)")
# Changes that leave the recipe what it is, so that the paper's value may stand beside ours.
_SAME_RECIPE = {"teachers", "evaluate_every"}
SIGNS = {"better": "▼ better", "worse": "▲ worse", "same": "≈ not distinguishable"}


# ---------------------------------------------------------------------- naming


def changes(variant: str) -> dict[str, str]:
    """What differs from the preset: {'explore': 'cka'} for 'ie-ft-explore=cka'."""
    return dict(_CHANGE.findall(variant))


def label(row: Mapping[str, Any]) -> str:
    """What a person calls the arm of a run: 'KD', 'inheritance only (L1)', 'IE-FT (inherit L1, explore CKA)'."""
    if row.get("role") == "teacher":
        return "Teacher"
    method, changed = row["method"], changes(row["variant"])
    name = METHODS.get(method, method.upper())
    if method.startswith("ie-"):
        name = _ie_label(name, row.get("inherit", "l1"), row.get("explore", "l1"))
        changed = {k: v for k, v in changed.items() if k not in ("inherit", "explore")}
    return ", ".join([name, *(f"{k.replace('_', ' ')} {v}" for k, v in changed.items())])


def _ie_label(name: str, inherit: str, explore: str) -> str:
    prefix = "" if name == "IE-FT" else f"{name}, "
    match inherit, explore:
        case "none", "none":
            return f"{name} without either loss"
        case _, "none":
            return f"{prefix}inheritance only ({MEASURES[inherit]})"
        case "none", _:
            return f"{prefix}exploration only ({MEASURES[explore]})"
        case "l1", "l1":
            return name
    return f"{name} (inherit {MEASURES[inherit]}, explore {MEASURES[explore]})"


def anchor(pair: str, variant: str, preset: str, dataset: str) -> str:
    """The id of an arm's section on the page of records: letters, digits, '.', '_' and '-'."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", f"{preset}--{dataset}--{pair}--{variant}")


def record_link(row: Mapping[str, Any]) -> str:
    """Address of the arm's section on the page of records."""
    return "records.html#" + anchor(*(row[k] for k in ("pair", "variant", "preset", "dataset")))


# ---------------------------------------------------------------------- choosing rows


def runs_of(frame: pd.DataFrame, config: RunConfig) -> pd.DataFrame:
    """The runs of one arm, all seeds: those whose path is `config.path` but for the seed."""
    return frame[frame["path"].str.rpartition("/")[0] == config.path.rpartition("/")[0]]


def scope(frame: pd.DataFrame, preset: str = "class", **setting: Any) -> pd.DataFrame:
    """The runs that belong in one table: teacher, student alone, and all that was distilled from this teacher to this student.

    `setting` names dataset, teacher and student where they differ from the preset's; other fields select further.
    Adds the columns `role` ('teacher' or 'student'), `scope` (the pair of the table) and `label`.
    """
    config = RunConfig.create(preset, **{**setting, "method": "kd"})
    wanted = {**setting, "preset": preset, "dataset": config.dataset, "pair": config.pair}
    distilled = frame
    for name, value in wanted.items():
        distilled = distilled[distilled[name] == value]
    parts = [
        runs_of(frame, config.teacher_run()).assign(role="teacher"),
        runs_of(frame, config.replace(method="supervised")).assign(role="student"),
        distilled.assign(role="student"),
    ]
    rows = pd.concat(parts, ignore_index=True).assign(scope=config.pair)
    return rows.assign(label=[label(row) for row in rows.to_dict("records")])


# ---------------------------------------------------------------------- numbers


def arms(frame: pd.DataFrame, metric: str = "last") -> pd.DataFrame:
    """One row per arm with n, mean, sd and the 95 % interval (low, high) of the metric, in the order of appearance."""
    context = [c for c in ("role", "scope") if c in frame]
    rows = []
    for _, runs in frame.groupby([*context, *ARM], sort=False):
        first = runs.iloc[0].to_dict()
        named = {k: first[k] for k in [*ARM, "method", *context]}
        rows.append({**named, "label": label(first), **summary(runs[metric])._asdict()})
    return pd.DataFrame(rows, columns=None if rows else [*ARM, "method", *context, "label", "n", "mean", "sd", "low", "high"])


def comparison(frame: pd.DataFrame, baseline: str = "supervised", metric: str = "last") -> pd.DataFrame:
    """`arms` of one `scope`, with the difference of each arm to the arm whose variant is `baseline`, paired by seed.

    Adds pairs, difference, difference_low, difference_high, p, p_holm (corrected over the arms of this table), effect ('better',
    'worse', 'same' by whether the interval excludes zero; '' for baseline, teacher, and where there is no interval), paper and
    versus_paper (NaN where the paper has no such cell). Raises `KeyError` if the baseline has no runs.
    """
    students = frame[frame["role"] == "student"]
    by_variant = {v: runs.set_index("seed")[metric] for v, runs in students.groupby("variant")}
    if baseline not in by_variant:
        raise KeyError(f"baseline {baseline!r} has no runs; there are {', '.join(by_variant) or 'none at all'}")
    table = arms(frame, metric)
    nothing = pd.Series(dtype=float)  # the teacher and the baseline itself are not compared
    compared = (table["role"] == "student") & (table["variant"] != baseline)
    results = [
        paired(by_variant[v] if wanted else nothing, by_variant[baseline])
        for v, wanted in zip(table["variant"], compared, strict=True)
    ]
    columns = {"n": "pairs", "low": "difference_low", "high": "difference_high"}
    table = table.join(pd.DataFrame(results, index=table.index).drop(columns="sd").rename(columns=columns))
    table["p_holm"] = holm(table["p"])
    table["effect"] = [_effect(r.low, r.high) for r in results]
    table["baseline"] = (table["role"] == "student") & (table["variant"] == baseline)
    table["paper"] = [paper_value(row) for row in table.to_dict("records")]
    table["versus_paper"] = table["mean"] - table["paper"]
    return table


def _effect(low: float, high: float) -> str:
    if pd.isna(low):
        return ""
    return "better" if high < 0 else "worse" if low > 0 else "same"


def paper_table() -> pd.DataFrame:
    """Table 1 of the paper's supplement: CIFAR-10 test error in percent, methods down, pairs across; no spread is given there."""
    with (files("iekd") / "paper_table1.csv").open() as source:
        return pd.read_csv(source, index_col="method")


def paper_value(row: Mapping[str, Any]) -> float:
    """The paper's error for an arm of a `scope`, NaN unless preset (paper), data set, pair and method are the paper's."""
    paper, pair = paper_table(), row["scope"]
    other_recipe = set(changes(row["variant"])) - _SAME_RECIPE
    if row["preset"] != "paper" or row["dataset"] != "cifar10" or pair not in paper or other_recipe:
        return float("nan")
    own = "teacher" if row["role"] == "teacher" else "student"
    name = own if row["method"] == "supervised" else row["method"].upper()
    return float(paper[pair].get(name, float("nan")))


# ---------------------------------------------------------------------- printing


def number(value: float, digits: int = 2, signed: bool = False) -> str:
    """A number for people: true minus sign, em dash for NaN."""
    if pd.isna(value):
        return "—"
    return f"{round(value, digits) + 0.0:{'+' if signed else ''}.{digits}f}".replace("-", "−")


def interval(low: float, high: float, signed: bool = False) -> str:
    """'[6.90, 7.34]', or 'no interval'."""
    return "no interval" if pd.isna(low) else f"[{number(low, signed=signed)}, {number(high, signed=signed)}]"


def p_text(p: float) -> str:
    """'p = 0.012', 'p < 0.001'."""
    return "p < 0.001" if p < 0.001 else f"p = {number(p, 3)}"


def _spread(row: Mapping[str, Any]) -> str:
    return number(row["mean"]) + ("" if pd.isna(row["sd"]) else f" ± {number(row['sd'])}")


def _compared(row: Mapping[str, Any]) -> list[str]:
    """The lines of a difference cell: difference with sign and word, then interval, pairs and p."""
    if row["baseline"]:
        return ["baseline"]
    if row["pairs"] == 0:
        return ["—"]
    limits = interval(row["difference_low"], row["difference_high"], signed=True)
    tested = "" if pd.isna(row["p_holm"]) else f", {p_text(row['p_holm'])}"
    return [f"{number(row['difference'], signed=True)} {SIGNS.get(row['effect'], '')}".strip(), f"{row['pairs']} pairs, {limits}{tested}"]


def _against_paper(row: Mapping[str, Any]) -> list[str]:
    return ["—"] if pd.isna(row["paper"]) else [number(row["paper"]), f"ours − paper: {number(row['versus_paper'], signed=True)}"]


def _cells(row: Mapping[str, Any]) -> str:
    """The three HTML cells of an arm: our error, its difference to the baseline, the paper's value."""
    ours = f'<a href="{record_link(row)}">{_spread(row)}</a><small>n = {row["n"]}, {interval(row["low"], row["high"])}</small>'
    compared, paper = (_lines(cell) for cell in (_compared(row), _against_paper(row)))
    return f'<td>{ours}</td><td class="{row["effect"] or "none"}">{compared}</td><td>{paper}</td>'


def _lines(texts: list[str]) -> str:
    return "".join([escape(texts[0]), *(f"<small>{escape(t)}</small>" for t in texts[1:])])


def html(table: pd.DataFrame, caption: str, metric: str = "last") -> str:
    """HTML of one or more concatenated `comparison`s: methods down, pairs across (three columns a pair)."""
    by_cell = {(row["label"], row["scope"]): _cells(row) for row in table.to_dict("records")}
    pairs = list(dict.fromkeys(table["scope"]))
    groups = "".join(f'<th scope="colgroup" colspan="3">{escape(pair.replace("-", " → "))}</th>' for pair in pairs)
    heads = '<th scope="col">error, %</th><th scope="col">minus baseline, points</th><th scope="col">paper, %</th>' * len(pairs)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(by_cell.get((name, p), "<td>—</td>" * 3) for p in pairs)}</tr>\n'
        for name in dict.fromkeys(table["label"])
    )
    note = (
        f"{METRICS.get(metric, metric).capitalize()}: mean ± standard deviation over n seeds, 95 % t-interval of the mean. Differences are "
        "paired by seed; p is Holm-corrected over the methods of a pair; better and worse mean that the interval of the difference excludes zero."
    )
    return (
        f'<div class="ie-table-scroll" role="region" tabindex="0" aria-label="{escape(caption)}"><table class="ie-table">\n'
        f"<caption>{escape(caption)}<small>{escape(note)}</small></caption>\n"
        f'<thead><tr><th scope="col" rowspan="2">method</th>{groups}</tr><tr>{heads}</tr></thead>\n<tbody>\n{body}</tbody></table></div>'
    )


def markdown(table: pd.DataFrame) -> str:
    """The same table for README and terminal, one pair below the other, without links."""
    lines = ["| pair | method | n | error, % (mean ± sd) | 95 % interval | minus baseline, points | paper, % |", "|" + "---|" * 7]
    for row in table.to_dict("records"):
        cells = [row["scope"].replace("-", " → "), row["label"], str(row["n"]), _spread(row), interval(row["low"], row["high"])]
        lines.append(f"| {' | '.join([*cells, '; '.join(_compared(row)), '; '.join(_against_paper(row))])} |")
    return "\n".join(lines)


def record_index_html(frame: pd.DataFrame) -> str:
    """A section for every arm, its id the arm's `anchor`: for every seed the errors, the record and the command that makes it again."""
    sections = []
    for (preset, dataset, pair, variant), runs in frame.sort_values([*ARM, "seed"]).groupby(ARM):
        name = label(runs.iloc[0].to_dict()).replace("Student alone", "Trained alone")
        rows = "".join(map(_record_row, runs.to_dict("records")))
        heads = "".join(f'<th scope="col">{h}</th>' for h in ("seed", "last, %", "selected, %", "best on test, %", "record", "command"))
        sections.append(
            f'<section id="{anchor(pair, variant, preset, dataset)}"><h3>{escape(pair.replace("-", " → "))}: {escape(name)}</h3>\n'
            f'<div class="ie-table-scroll"><table class="ie-table"><caption>{preset}, {dataset}, {escape(variant)}</caption>\n'
            f"<thead><tr>{heads}</tr></thead><tbody>\n{rows}</tbody></table></div></section>\n"
        )
    return "".join(sections)


def _record_row(row: Mapping[str, Any]) -> str:
    errors = "".join(f"<td>{number(row.get(m, float('nan')))}</td>" for m in ("last", "val_selected", "best_on_test"))
    record = f'<a href="records/{quote(row["path"])}.json">{row["hash"]}</a>'
    return f'<tr><th scope="row">{row["seed"]}</th>{errors}<td>{record}</td><td><code>{escape(row["command"])}</code></td></tr>\n'


def csv_link(frame: pd.DataFrame, name: str = "runs.csv") -> str:
    """A download link that carries the runs behind a table within the page (about 150 bytes a run)."""
    columns = [c for c in (*ARM, "seed", *METRICS, "seconds", "device", "hash") if c in frame]
    data = base64.b64encode(frame[columns].to_csv(index=False, float_format="%.6g").encode()).decode()
    return f'<a class="ie-download" download="{escape(name)}" href="data:text/csv;base64,{data}">Download the {len(frame)} runs as CSV</a>'
