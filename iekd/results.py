"""The result tables that a reader meets first: a grid's arms, the paper's table with ours beside it, and README's headline.

An arm without records keeps its row and says "no runs yet", so that what is missing is as visible as what is there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from iekd import tables
from iekd.arms import label_of, scope
from iekd.claims import NO_RUNS
from iekd.config import RunConfig
from iekd.stats import LEVEL
from iekd.tables import METRICS, heads_html, number

HEADLINE = ("supervised", "kd", "ft", "ie-ft")
MARKERS = re.compile(r"(?<=<!-- headline:start -->\n).*?(?=<!-- headline:end -->)", re.DOTALL)


# ---------------------------------------------------------------------- a grid


def grid_runs(frame: pd.DataFrame, configs: Sequence[RunConfig]) -> pd.DataFrame:
    """The finished runs of a grid of one pair as a `scope`: its teachers first, if an arm has one, then its arms."""
    config = next((c for c in configs if c.has_teacher), None) or next(c for c in configs if c.is_mutual)
    pair = {k: getattr(config, k) for k in ("dataset", "teacher", "student")}
    students = scope(frame, config.preset, **pair)
    parts = [students[(students["role"] == "student") & students["variant"].isin([c.variant for c in configs])]]
    if config.has_teacher:  # trained as this grid says, which need not be as the preset does
        taught = scope(frame, config.preset, **pair, teacher_epochs=config.teacher_epochs, teacher_lr=config.teacher_lr)
        parts.insert(0, taught[taught["role"] == "teacher"])
    return pd.concat(parts, ignore_index=True)


def grid_html(
    frame: pd.DataFrame, configs: Sequence[RunConfig], caption: str, metric: str = "last", baselines: Sequence[str] = ("supervised", "ft")
) -> str:
    """HTML of a grid of one pair: the teacher, then the arms in the grid's order, with paired differences to the `baselines` (variants)."""
    runs = grid_runs(frame, configs)
    ours = _by_arm(tables.arms(runs, metric))
    present = [b for b in baselines if b in set(runs.loc[runs["role"] == "student", "variant"])]
    compared = {b: _by_arm(tables.comparison(runs, b, metric)) for b in present}
    named = {("student", c.variant): label_of(c) for c in configs}
    teachers = {key: "Teacher" for key in ours if key[0] == "teacher"} or {("teacher", ""): "Teacher"}
    teachers = teachers if any(c.has_teacher for c in configs) else {}
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{_ours_cell(ours.get(key))}'
        + "".join(_difference_cell(compared.get(b, {}).get(key)) for b in baselines)
        + "</tr>\n"
        for key, name in {**teachers, **named}.items()
    )
    head = heads_html("method", "error, %", *(f"minus {named.get(('student', b), b)}, points" for b in baselines))
    note = (
        f"{METRICS[metric]}: mean ± standard deviation over n seeds, {100 * LEVEL:.0f} % t-interval of the mean. Differences are paired by "
        "seed; p is Holm-corrected over the arms of a column; better or worse: the interval of the difference, not corrected, "
        "excludes zero."
    )
    return tables.framed(caption, note, f"<tr>{head}</tr>", body)


def _by_arm(table: pd.DataFrame) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["role"], row["variant"]): row for row in table.to_dict("records")}


def _ours_cell(row: dict[str, Any] | None) -> str:
    return f"<td>{NO_RUNS if row is None or row['n'] == 0 else tables.error_html(row)}</td>"


def _difference_cell(row: dict[str, Any] | None) -> str:
    return "<td>—</td>" if row is None else f'<td class="{row["effect"] or "none"}">{tables.lines_html(tables.difference_lines(row))}</td>'


# ---------------------------------------------------------------------- the paper's table


def paper_html(frame: pd.DataFrame, caption: str, metric: str = "last") -> str:
    """Table 1 of the paper's supplement, methods down and pairs across, ours beside each value, or why there is none."""
    paper = tables.paper_table()
    ours = {pair: _ours_of_pair(frame, pair, metric) for pair in paper}
    groups = "".join(f'<th scope="colgroup" colspan="2">{escape(pair.replace("-", " → "))}</th>' for pair in paper)
    body = "".join(
        f'<tr><th scope="row">{escape(method)}</th>'
        + "".join(f"<td>{number(values[pair])}</td>{_beside(ours[pair].get(method))}" for pair in paper)
        + "</tr>\n"
        for method, values in paper.iterrows()
    )
    head = f'<tr><th scope="col" rowspan="2">method</th>{groups}</tr><tr>{heads_html("paper, %", "ours, %") * len(ours)}</tr>'
    note = (
        "Paper: one number a cell, without spread, number of seeds or the rule that chose the epoch. Ours: "
        f"{METRICS[metric][0].lower()}{METRICS[metric][1:]}, mean ± standard deviation over n seeds, with the difference to "
        "the paper's value."
    )
    return tables.framed(caption, note, head, body)


def _ours_of_pair(frame: pd.DataFrame, pair: str, metric: str) -> dict[str, dict[str, Any]]:
    """Our arms that the paper has too, by the paper's name of the method."""
    teacher, student = pair.split("-")
    rows = tables.arms(scope(frame, "paper", teacher=teacher, student=student), metric).to_dict("records")
    known = [{**row, "paper": tables.paper_value(row)} for row in rows]
    return {tables.paper_name(row): row for row in reversed(known) if pd.notna(row["paper"]) and row["n"]}


def _beside(row: dict[str, Any] | None) -> str:
    """Our cell: the value with its difference to the paper's, or that there is none."""
    if row is not None:
        return f"<td>{tables.error_html(row)}<small>ours − paper: {number(row['mean'] - row['paper'], signed=True)}</small></td>"
    return f'<td class="none"><small>{NO_RUNS}</small></td>'


# ---------------------------------------------------------------------- README


def readme(frame: pd.DataFrame, preset: str = "class") -> str:
    """The headline table of README.md in Markdown: teacher, student and the methods, with links to the folders of their records."""
    configs = [RunConfig.create(preset, method=method) for method in HEADLINE]
    runs = grid_runs(frame, configs)
    students = runs[runs["role"] == "student"]
    if "supervised" not in set(students["variant"]):
        return f"There are {NO_RUNS} at {preset} scale.\n"
    paths = dict(zip(zip(runs["role"], runs["variant"], strict=True), runs["path"].str.rsplit("/", n=1).str[0], strict=True))
    lines = ["| method | n | test error, % | minus student alone, points |", "|---|---|---|---|"]
    for key, row in _by_arm(tables.comparison(runs)).items():
        name = f"[{row['label']}](runs/records/{paths[key]})"
        lines.append(f"| {name} | {row['n']} | {tables.spread(row)} | {'; '.join(tables.difference_lines(row))} |")
    return f"{_setting(configs[-1])}\n\n" + "\n".join(lines) + "\n"


def _setting(config: RunConfig) -> str:
    images = f"{config.train_images:,} training images" if config.train_images else "all training images"
    size = f" at {config.image_size} × {config.image_size} pixels" if config.image_size else ""
    return (
        f"**{config.preset.capitalize()} scale** ({config.teacher} teaches {config.student}; {config.dataset}{size}, {images}, "
        f"{config.epochs} epochs): {METRICS['last'].lower()}, mean ± standard deviation over n seeds. Differences are paired by seed, "
        f"with {100 * LEVEL:.0f} % interval and Holm-corrected p. It is a small setting, not the paper's; the book says what it can tell."
    )


def update_readme(path: Path, frame: pd.DataFrame) -> None:
    """Write the headline table between the markers of README.md."""
    text = path.read_text(encoding="utf-8")
    path.write_text(MARKERS.sub(lambda _: readme(frame), text), encoding="utf-8")
