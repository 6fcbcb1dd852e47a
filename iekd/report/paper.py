"""The paper's own numbers, and its table with ours next to each."""

import functools
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import pandas as pd
from markupsafe import Markup

from iekd.config import RunConfig, known, methods
from iekd.method.features import PairError
from iekd.report import comparison, html, labels, phrases, tables
from iekd.report.arms import scope
from iekd.report.comparison import METRICS, summary_of
from iekd.report.html import Cell
from iekd.report.phrases import number
from iekd.report.statistics import LEVEL, holm, minus_constant, outcome

# Changes that do not affect the recipe, so that the paper's value may be shown next to ours.
SAME_RECIPE = {"teachers", "evaluate_every"}


@functools.cache
def paper_table() -> pd.DataFrame:
    """Table 1 of the supplement: CIFAR-10 error, methods down, (teacher, student) across."""
    with (files("iekd.report") / "paper_table1.csv").open(encoding="utf-8") as source:
        return pd.read_csv(source, header=[0, 1], index_col=0).rename_axis("method")


def paper_value(row: Mapping[str, Any]) -> float:
    """The paper's error for a run of a scope; NaN unless recipe, data and pair are its own."""
    config, by_pair = labels.config_of(row), {"-".join(p): v for p, v in paper_table().items()}
    same = (config.preset, config.dataset) == ("paper", "cifar10")
    if not same or row["scope"] not in by_pair or set(config.changed()) - SAME_RECIPE:
        return float("nan")
    return float(by_pair[row["scope"]].get(paper_name(row), float("nan")))


def paper_name(row: Mapping[str, Any]) -> str:
    """The name of a run's method in the paper's table, for a run of a scope."""
    own = "teacher" if row["role"] == "teacher" else "student"
    return own if row["method"] == "supervised" else labels.method_name(row["method"])


def paper_html(frame: pd.DataFrame, caption: str, metric: str = "last") -> Markup:
    """Table 1 of the supplement, methods down and pairs across, ours next to each, or why not.

    The rule `metric` is shown, the others are a click away.
    """
    ours = {pair: _like_the_papers(frame, *pair) for pair in paper_table()}
    # a student alone may be in two pairs
    runs = pd.concat(ours.values(), ignore_index=True).drop_duplicates("path")
    shown = tables.rules(runs, metric)
    panels = {tables.RULES[rule]: _paper_table(ours, caption, rule) for rule in shown}
    configs = [config for pair in ours for config in paper_configs(*pair).values()]
    return tables.block(panels, runs, caption, configs)


def _paper_table(ours: dict[tuple[str, str], pd.DataFrame], caption: str, metric: str) -> Markup:
    """The table for one rule; `ours` are our runs by pair."""
    paper = paper_table()
    cells = {pair: _beside_paper(pair, runs, metric) for pair, runs in ours.items()}
    rows = []
    for method, values in paper.iterrows():
        both = [(Cell(number(values[pair])), cells[pair][method]) for pair in paper]
        rows.append(html.row(method, *sum(both, ())))

    pairs = [html.column(labels.networks("-".join(p)), scope="colgroup", colspan=2) for p in paper]
    sides = [html.column(name) for name in ("paper, %", "ours, %")] * len(ours)
    heads = html.tag("tr", html.column("method", rowspan=2), *pairs) + html.tag("tr", *sides)
    config = next(iter(paper_configs(*paper.columns[0]).values()))
    note = (
        "Paper: one number per cell, without a spread, the number of seeds or the rule that chose "
        f"the epoch. Ours: {METRICS[metric][0].lower()}{METRICS[metric][1:]}, mean ± standard "
        f"deviation over n seeds, {100 * LEVEL:.0f} % t-interval of the mean; last line: ours − "
        "paper with the same interval, as if the paper's number were exact; p is Holm-corrected "
        f"over the cells of a pair. {phrases.legend('paper')} "
        f"{tables.no_validation(config, metric)}"
    )
    return html.table(caption, note, heads, rows)


def _like_the_papers(frame: pd.DataFrame, teacher: str, student: str) -> pd.DataFrame:
    """Our runs of a pair that the paper has too, made as the preset says."""
    runs = scope(frame, "paper", teacher=teacher, student=student)
    known = [pd.notna(paper_value(row)) for row in runs.to_dict("records")]
    return runs.loc[pd.Series(known, index=runs.index, dtype=bool)]


@functools.cache
def paper_configs(teacher: str, student: str) -> dict[str, RunConfig]:
    """What we would run for each row of the paper's table, by the paper's name for it."""
    names = {labels.method_name(method): method for method in known.methods()}
    kd = RunConfig.create("paper", teacher=teacher, student=student, method="kd")
    configs = {"teacher": kd.teacher_run(), "student": kd.replace(method="supervised")}
    for name in paper_table().index.drop(list(configs)):
        configs[name] = kd.replace(method=names[name])
    return configs


def _beside_paper(pair: tuple[str, str], runs: pd.DataFrame, metric: str) -> dict[str, Cell]:
    """Our cells of a pair by the paper's names: error, difference from the paper's, or why not."""
    ours = {paper_name(row): row for row in comparison.arms(runs, metric).to_dict("records")}
    paper = paper_table()[pair]
    results = {name: minus_constant(summary_of(row), paper[name]) for name, row in ours.items()}
    corrected = dict(zip(ours, holm(r.p for r in results.values()), strict=True))
    cells = {}
    for name, config in paper_configs(*pair).items():
        absent = refused(config) or tables.absent(config, metric)
        if name not in ours:
            cells[name] = tables.error_cell(None, absent)
            continue
        result, p = results[name], corrected[name]
        found = outcome(result, p, comparison.smallest("paper"))
        line = number(result.difference, signed=True)
        if found:
            limits = phrases.interval(result.low, result.high, signed=True)
            line += f" {phrases.SIGNS[found]} {limits}, {phrases.p_text(p)}"
        cells[name] = tables.error_cell(ours[name], absent, line, kind=found or "none")
    return cells


def refused(config: RunConfig) -> str:
    """Why the library does not run this configuration, if it does not."""
    try:
        methods.compared(config)
    except PairError:
        return "cannot be compared: feature maps differ in size"
    return ""
