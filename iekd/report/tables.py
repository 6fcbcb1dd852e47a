"""The tables of results: a grid's arms, the paper's table with ours, and the page of records.

An arm without records keeps its row and says "no runs yet", so that what is missing is as visible
as what is available.
"""

from collections.abc import Iterable, Mapping, Sequence
from re import sub
from typing import Any
from urllib.parse import quote

import pandas as pd
from markupsafe import Markup

from iekd.config import RunConfig
from iekd.report import comparison, html, labels, phrases, tuning
from iekd.report.arms import ARM, grid_runs, students_of
from iekd.report.claims import NO_RUNS
from iekd.report.comparison import METRICS, summary_of
from iekd.report.html import Cell
from iekd.report.phrases import number
from iekd.report.statistics import LEVEL, Summary

# How the epoch is chosen, as written on the tabs of a table.
RULES = {
    "last": "last epoch",
    "val_selected": "selected on validation",
    "best_on_test": "best on test (biased)",
    "last_exact": "last epoch, exact images",
}
NO_VALIDATION = "no validation images"
# Columns of the CSV file of runs, in addition to the arm, the seed and METRICS.
MEASURED = ("last_train", "cka_inherit", "cka_explore", "cka_teacher", "rise_validation")


def summary_cell(row: Mapping[str, Any], s: Summary, digits: int = 2) -> Cell:
    """A summary over runs of the arm of `row`: mean and spread, a link; below, n and interval."""
    below = f"n = {s.n}, {phrases.interval(s.low, s.high, digits=digits)}"
    return Cell(phrases.spread(s.mean, s.sd, digits), [below], href=labels.record_link(row))


def record_cell(path: str, value: float) -> Cell:
    """A number of one run, linked to its record; a missing number has no link."""
    return Cell(number(value), href="" if pd.isna(value) else record_address(path))


def record_address(path: str) -> str:
    """The address of a record on the site."""
    return f"records/{quote(path)}.json"


def error_cell(row: Mapping[str, Any] | None, absent: str, *below: str, kind: str = "") -> Cell:
    """The error of an arm (a row of `arms`), or why there is none."""
    if row is None or row["n"] == 0:
        return Cell("", [absent], "none")
    cell = summary_cell(row, summary_of(row))
    return cell._replace(small=[*cell.small, *below], kind=kind)


def _difference_cell(row: Mapping[str, Any] | None) -> Cell:
    """The difference of an arm (a row of `comparison`)."""
    if row is None or row["n"] == 0:
        return Cell(kind="none")
    first, *below = difference_lines(row)
    return Cell(first, below, row["outcome"] or "none")


def difference_lines(row: Mapping[str, Any]) -> list[str]:
    """The lines of a difference (a row of `comparison`): value and word; interval; pairs and p."""
    if row["baseline"]:
        return ["baseline"]
    if row["pairs"] == 0:
        return ["—"]
    word = f"{phrases.SIGNS[row['outcome']]} {row['outcome']}"
    limits = phrases.interval(row["difference_low"], row["difference_high"], signed=True)
    tested = "" if pd.isna(row["p_holm"]) else f", {phrases.p_text(row['p_holm'])}"
    difference = f"{number(row['difference'], signed=True)} {word}".strip()
    pairs = "1 pair" if row["pairs"] == 1 else f"{row['pairs']} pairs"
    return [difference, limits, f"{pairs}{tested}"]


def grid_html(
    frame: pd.DataFrame,
    configs: Sequence[RunConfig],
    caption: str,
    metric: str = "last",
    baselines: Sequence[str] = ("supervised", "ft"),
    command: str = "",
) -> Markup:
    """A grid of one pair: the teacher, then the arms in the grid's order, and their differences.

    Differences from the `baselines` (variants) are paired. The rule `metric` is shown, the others
    are a click away; below are the runs as CSV and the command that makes them: a sweep, else
    `command`.
    """
    runs, names = grid_runs(frame, configs), labels.names_of(configs)
    students = runs["role"] == "student"
    runs["label"] = runs["label"].mask(students, runs["variant"].map(names))
    shown = rules(runs, metric)
    panels = {RULES[rule]: _grid_table(runs, configs, caption, rule, baselines) for rule in shown}
    shared = ", ".join(labels.settings(labels.shared(configs)))
    notes = [f"All arms: {shared}." if shared else "", tuning.size_note(configs)]
    notes += [phrases.version_note(runs, baselines)]
    return block(panels, runs, caption, configs, command, *notes)


def _grid_table(
    runs: pd.DataFrame,
    configs: Sequence[RunConfig],
    caption: str,
    metric: str,
    baselines: Sequence[str],
) -> Markup:
    """The table for one rule: the arms by role and variant, with or without runs.

    Differences come first: a phone shows no more than two columns at once.
    """
    names = {("student", variant): name for variant, name in labels.names_of(configs).items()}
    minus = [f"minus {names.get(('student', b), b)}, points" for b in baselines]
    if any(c.has_teacher for c in configs):
        taught = runs.loc[runs["role"] == "teacher", "variant"].unique()
        names = {("teacher", v): "Teacher" for v in [*taught] or [""]} | names
    ours, compared = rows_of(runs, metric, baselines)
    fitted = _training_errors(runs) if metric == "last" else {}
    rows = []
    for arm, name in names.items():
        differences = [_difference_cell(compared[b].get(arm)) for b in baselines]
        error = error_cell(ours.get(arm), absent(configs[0], metric), *fitted.get(arm, []))
        rows.append(html.row(name, *differences, error))
    note = (
        f"{METRICS[metric]}: mean ± standard deviation over n seeds, {100 * LEVEL:.0f} % "
        "t-interval of the mean."
    )
    compared_by = (
        "Differences are paired by seed. Intervals are uncorrected; p is Holm-corrected over the "
        f"arms of a column. {phrases.legend(configs[0].preset)}"
    )
    of_training = "Training: mean error on the training images, unaugmented, in evaluation mode."
    remarks = [of_training if fitted else "", compared_by if baselines else ""]
    remarks += [phrases.outliers(runs, metric)]
    note = _joined([note, *remarks, no_validation(configs[0], metric)])
    return html.table(caption, note, ["method", *minus, "error, %"], rows)


def _training_errors(runs: pd.DataFrame) -> dict[tuple[str, str], list[str]]:
    """What goes below a test error, by role and variant; nothing if it is not on record."""
    known = runs.dropna(subset=["last_train"]) if "last_train" in runs else runs[:0]
    means = {arm: of["last_train"].mean() for arm, of in known.groupby(["role", "variant"])}
    return {arm: [f"training {number(mean)}"] for arm, mean in means.items()}


Rows = dict[tuple[str, str], dict[str, Any]]


def rows_of(
    runs: pd.DataFrame, metric: str, baselines: Iterable[str]
) -> tuple[Rows, dict[str, Rows]]:
    """By role and variant: the arms of a scope, and their differences from each baseline."""

    def by_arm(table: pd.DataFrame) -> Rows:
        return {(row["role"], row["variant"]): row for row in table.to_dict("records")}

    there, compared = set(students_of(runs)["variant"]), dict.fromkeys(baselines, {})
    for baseline in there.intersection(baselines):
        compared[baseline] = by_arm(comparison.comparison(runs, baseline, metric))
    return by_arm(comparison.arms(runs, metric)), compared


def rules(runs: pd.DataFrame, first: str) -> list[str]:
    """The rules for which a table is shown: exact test images only if there are others."""
    exact = runs["last_exact"].notna().any()
    known = [rule for rule in RULES if rule != "last_exact" or exact]
    return list(dict.fromkeys([first, *known]))


def absent(config: RunConfig, metric: str) -> str:
    """Why a cell is empty."""
    return NO_VALIDATION if metric == "val_selected" and not config.validation_images else NO_RUNS


def no_validation(config: RunConfig, metric: str) -> str:
    if absent(config, metric) != NO_VALIDATION:
        return ""
    return (
        f"The preset {config.preset!r} holds no images out for validation (validation_images = 0): "
        "no epoch can be selected on them."
    )


def _joined(sentences: Iterable[str]) -> str:
    return " ".join(filter(None, sentences))


def block(
    panels: dict[str, Markup],
    runs: pd.DataFrame,
    caption: str,
    configs: Iterable[RunConfig],
    command: str = "",
    *notes: str,
) -> Markup:
    """One table for several rules, its runs as CSV, the command that makes them, and remarks."""
    students = students_of(runs)["path"]
    sweep = phrases.sweep_command(students if len(students) else [c.path for c in configs])
    below = foot(runs, caption, sweep or command, _joined([*notes, phrases.remark(runs)]))
    return html.block(html.tabs(panels, "Test error:"), below)


def foot(frame: pd.DataFrame, caption: str, command: str = "", remark: str = "") -> Markup:
    """What goes below every table of results: its data as CSV, what makes them, and a remark."""
    name = sub(r"[^a-z0-9]+", "-", caption.lower()).strip("-")[:60].rstrip("-")
    parts = [csv_link(frame, f"{name}.csv")] if len(frame) else []
    parts += [html.command(command)] if command else []
    parts += [html.small(remark)] if remark else []
    return html.foot(*parts)


def csv_link(frame: pd.DataFrame, name: str = "runs.csv") -> Markup:
    """The data of a table as CSV: one row per run (about 150 bytes), else the whole frame."""
    if "hash" not in frame:
        return html.csv_link(frame, name)
    wanted = (*ARM, "seed", *METRICS, *MEASURED, "seconds", "device", "hash")
    runs = frame[[c for c in wanted if c in frame]].dropna(axis="columns", how="all")
    return html.csv_link(runs, name, f"CSV of the {len(runs)} runs")


def record_index_html(frame: pd.DataFrame) -> Markup:
    """A heading for every pair of networks, with a fold for every arm: the command, and errors and
    record by seed. A link to an arm's `anchor`, which is inside, unfolds it.
    """
    parts, pair = [], ""
    for _, runs in frame.sort_values([*ARM, "seed"]).groupby(ARM):
        first = runs.iloc[0].to_dict()
        networks = f"{labels.networks(first['pair'])} ({first['preset']}, {first['dataset']})"
        parts += [html.tag("h2", networks), "\n"] if networks != pair else []
        pair = networks
        name = f"{labels.label(first)} (n = {len(runs)})"
        section = html.tag("section", *_arm(first, runs), id=labels.anchor(first))
        parts.append(html.folded(name, section))
    return Markup("").join(parts)


def _arm(first: dict[str, Any], runs: pd.DataFrame) -> list[Markup]:
    """The command of an arm, and its runs."""
    command = f"{first['command'].rpartition(' ')[0]} SEED"  # it ends with the seed
    heads = ["seed", "last, %", "selected, %", "best on test, %", "record"]
    rows = []
    for row in runs.to_dict("records"):
        errors = [number(row[rule]) for rule in ("last", "val_selected", "best_on_test")]
        record = Cell(row["hash"], href=record_address(row["path"]))
        rows.append(html.row(row["seed"], *errors, record))
    table = html.table(labels.label(first), "test error, one row a seed", heads, rows)
    return [html.tag("p", html.tag("code", command)), Markup("\n"), table]
