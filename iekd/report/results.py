"""The result tables that a reader meets first: a grid's arms, the paper's table with ours beside it, and README's headline.

An arm without records keeps its row and says "no runs yet", so that what is missing is as visible as what is there.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from iekd import records
from iekd.checkout import ROOT
from iekd.config import RunConfig
from iekd.config.grid import holding
from iekd.errors import StoreError
from iekd.method import registry
from iekd.method.features import PairError
from iekd.records import store
from iekd.records.store import write_atomic
from iekd.report import tables, tuning
from iekd.report.claims import NO_RUNS, decisive
from iekd.report.labels import label_of, method_name, scope
from iekd.report.statistics import LEVEL, Paired, Summary, holm, minus_constant, outcome
from iekd.report.tables import METRICS, heads_html, number

# How the epoch is chosen, as the tabs of a table say it.
RULES = {
    "last": "last epoch",
    "val_selected": "selected on validation",
    "best_on_test": "best on test (biased)",
    "last_exact": "last epoch, exact images",
}
NO_VALIDATION = "no validation images"
TEST_IMAGES, RECOMPRESSED = (
    10_000,
    20,
)  # of CIFAR-10, and of its copy that records with an exact error come from (a test counts)
HEADLINE = ("supervised", "kd", "ft", "ie-ft")
README = ROOT / "README.md"
MARKERS = re.compile(r"(?<=<!-- headline:start -->\n).*?(?=<!-- headline:end -->)", re.DOTALL)


# ---------------------------------------------------------------------- a grid


def grid_runs(frame: pd.DataFrame, configs: Sequence[RunConfig]) -> pd.DataFrame:
    """The finished runs of a grid of one pair as a `scope`: its teachers first, if an arm has one, then its arms."""
    config = next((c for c in configs if c.has_teacher), None) or next(
        (c for c in configs if c.is_mutual), configs[0]
    )
    named = {k: getattr(config, k) for k in ("dataset", "teacher", "student")}
    pair = {
        k: value for k, value in named.items() if value != "none"
    }  # what no run names is the preset's
    students = scope(frame, config.preset, **pair)
    parts = [
        students[
            (students["role"] == "student") & students["variant"].isin([c.variant for c in configs])
        ]
    ]
    if config.has_teacher:  # trained as this grid says, which need not be as the preset does
        taught = scope(
            frame,
            config.preset,
            **pair,
            teacher_epochs=config.teacher_epochs,
            teacher_lr=config.teacher_lr,
        )
        parts.insert(0, taught[taught["role"] == "teacher"])
    return pd.concat(parts, ignore_index=True)


def decisive_runs(frame: pd.DataFrame, configs: Sequence[RunConfig]) -> pd.DataFrame:
    """`grid_runs`, of the students those on the seeds that decide (`claims.decisive`)."""
    runs = grid_runs(frame, configs)
    return pd.concat(
        [runs[runs["role"] == "teacher"], decisive(runs[runs["role"] == "student"], configs)],
        ignore_index=True,
    )


def grid_html(
    frame: pd.DataFrame,
    configs: Sequence[RunConfig],
    caption: str,
    metric: str = "last",
    baselines: Sequence[str] = ("supervised", "ft"),
    command: str = "",
) -> str:
    """HTML of a grid of one pair: the teacher, then the arms in the grid's order, with paired differences to the `baselines` (variants).

    The rule `metric` is shown, the others are a click away; below stand the runs as CSV and the command that makes them: a sweep of the
    grids that hold them, else `command`.
    """
    runs = grid_runs(frame, configs)
    panels = {
        RULES[rule]: _grid_table(runs, configs, caption, rule, baselines)
        for rule in _rules(runs, metric)
    }
    students = runs.loc[runs["role"] == "student", "path"]
    notes = tuning.size_note(configs), version_note(runs, baselines)
    return _block(
        panels,
        runs,
        caption,
        sweep_command(students if len(students) else [c.path for c in configs]) or command,
        *notes,
    )


def _grid_table(
    runs: pd.DataFrame,
    configs: Sequence[RunConfig],
    caption: str,
    metric: str,
    baselines: Sequence[str],
) -> str:
    ours = _by_arm(tables.arms(runs, metric))
    present = [b for b in baselines if b in set(runs.loc[runs["role"] == "student", "variant"])]
    compared = {b: _by_arm(tables.comparison(runs, b, metric)) for b in present}
    named = {("student", c.variant): label_of(c) for c in configs}
    teachers = {key: "Teacher" for key in ours if key[0] == "teacher"} or {
        ("teacher", ""): "Teacher"
    }
    teachers = teachers if any(c.has_teacher for c in configs) else {}
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{_ours_cell(ours.get(key), _absent(configs[0], metric))}'
        + "".join(_difference_cell(compared.get(b, {}).get(key)) for b in baselines)
        + "</tr>\n"
        for key, name in {**teachers, **named}.items()
    )
    head = heads_html(
        "method", "error, %", *(f"minus {named.get(('student', b), b)}, points" for b in baselines)
    )
    remarks = [
        f"{METRICS[metric]}: mean ± standard deviation over n seeds, {100 * LEVEL:.0f} % t-interval of the mean. Differences are paired by "
        "seed; their intervals are not corrected, p is Holm-corrected over the arms of a column.",
        tables.legend(configs[0].preset),
        tables.outliers(runs, metric),
        _no_validation(configs[0], metric),
    ]
    return tables.framed(caption, " ".join(filter(None, remarks)), f"<tr>{head}</tr>", body)


def _by_arm(table: pd.DataFrame) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["role"], row["variant"]): row for row in table.to_dict("records")}


def _ours_cell(row: dict[str, Any] | None, absent: str = NO_RUNS) -> str:
    if row is None or row["n"] == 0:
        return f'<td class="none"><small>{absent}</small></td>'
    return f"<td>{tables.error_html(row)}</td>"


def _difference_cell(row: dict[str, Any] | None) -> str:
    if row is None or row["n"] == 0:
        return '<td class="none">—</td>'
    return f'<td class="{row["outcome"] or "none"}">{tables.lines_html(tables.difference_lines(row))}</td>'


# ---------------------------------------------------------------------- around a table


def _rules(runs: pd.DataFrame, first: str) -> list[str]:
    """The rules that a table of these runs is shown by: exact test images only where there are others."""
    known = [
        rule
        for rule in RULES
        if rule != "last_exact" or rule == first or runs["last_exact"].notna().any()
    ]
    return [first, *(rule for rule in known if rule != first)]


def _absent(config: RunConfig, metric: str) -> str:
    """Why a cell is empty."""
    return NO_VALIDATION if metric == "val_selected" and not config.validation_images else NO_RUNS


def _no_validation(config: RunConfig, metric: str) -> str:
    if _absent(config, metric) != NO_VALIDATION:
        return ""
    return f"The preset {config.preset!r} holds no images out for validation (validation_images = 0): no epoch can be selected on them."


def sweep_command(paths: Iterable[str]) -> str:
    """The command that makes these runs (paths of records): a sweep of the grids that hold them, '' if none does."""
    grids = holding(paths)
    return f"iekd sweep {' '.join(grids)}" if grids else ""


def remark(runs: pd.DataFrame) -> str:
    """What to know of the test images of CIFAR-10 where errors on them are shown; '' where all images are exact, or nothing is known."""
    shift = (runs["last_exact"].astype(float) - runs["last"]).dropna().abs()
    if not len(shift):
        return ""
    return (
        f"{RECOMPRESSED} of the {TEST_IMAGES:,} test images of CIFAR-10 are recompressed in the copy used here. On the other "
        f"{TEST_IMAGES - RECOMPRESSED:,} the error of no run here differs by more than {number(shift.max())} points."
    )


def version_note(runs: pd.DataFrame, baselines: Sequence[str]) -> str:
    """How many paired differences to the baselines (variants) are between runs of two versions of PyTorch, as a sentence; '' if none is."""
    students = runs[runs["role"] == "student"]
    known = torch_versions(students["path"])
    torch = {(r.variant, r.seed): known[r.path] for r in students.itertuples() if r.path in known}
    pairs = [
        {torch[v, seed], torch[b, seed]}
        for v, seed in torch
        for b in baselines
        if v != b and (b, seed) in torch
    ]
    mixed = [versions for versions in pairs if len(versions) > 1]
    if not mixed:
        return ""
    names = " and ".join(sorted(set.union(*mixed)))
    return f"In {len(mixed)} of these {len(pairs)} differences the two runs were made with different versions of PyTorch ({names})."


def torch_versions(paths: Iterable[str]) -> dict[str, str]:
    """The version of PyTorch that made each run, by the path of its record, as far as that is at hand."""
    files = {path: store.records_folder() / f"{path}.json" for path in paths}
    return {
        path: records.read(file).versions["torch"].partition("+")[0]
        for path, file in files.items()
        if file.exists()
    }


def _block(
    panels: dict[str, str], runs: pd.DataFrame, caption: str, command: str, *notes: str
) -> str:
    """One table by several rules, its runs as CSV, the command that makes them, and what to know of them."""
    below = tables.foot(runs, caption, command, " ".join(filter(None, [*notes, remark(runs)])))
    return f'<div class="ie-block">{tables.tabs(panels, "Test error:")}{below}</div>\n'


# ---------------------------------------------------------------------- the paper's table


def paper_html(frame: pd.DataFrame, caption: str, metric: str = "last") -> str:
    """Table 1 of the paper's supplement, methods down and pairs across, ours beside each value, or why there is none.

    The rule `metric` is shown, the others are a click away.
    """
    scopes = {pair: _of_pair(frame, pair) for pair in tables.paper_table()}
    runs = pd.concat(scopes.values(), ignore_index=True).drop_duplicates(
        "path"
    )  # a student alone may be in two pairs
    panels = {RULES[rule]: _paper_table(scopes, caption, rule) for rule in _rules(runs, metric)}
    configs, students = (
        [c for pair in scopes for c in _configs_of(pair).values()],
        runs.loc[runs["role"] == "student", "path"],
    )
    return _block(
        panels,
        runs,
        caption,
        sweep_command(students if len(students) else [c.path for c in configs]),
    )


def _paper_table(scopes: dict[str, pd.DataFrame], caption: str, metric: str) -> str:
    paper = tables.paper_table()
    ours = {pair: _beside_paper(runs, paper[pair], metric) for pair, runs in scopes.items()}
    configs = {pair: _configs_of(pair) for pair in paper}
    groups = "".join(
        f'<th scope="colgroup" colspan="2">{escape(pair.replace("-", " → "))}</th>'
        for pair in paper
    )
    body = "".join(
        f'<tr><th scope="row">{escape(method)}</th>'
        + "".join(
            f"<td>{number(values[pair])}</td>{_beside(ours[pair].get(method), configs[pair][method], metric)}"
            for pair in paper
        )
        + "</tr>\n"
        for method, values in paper.iterrows()
    )
    head = f'<tr><th scope="col" rowspan="2">method</th>{groups}</tr><tr>{heads_html("paper, %", "ours, %") * len(scopes)}</tr>'
    note = (
        "Paper: one number a cell, without spread, number of seeds or the rule that chose the epoch. Ours: "
        f"{METRICS[metric][0].lower()}{METRICS[metric][1:]}, mean ± standard deviation over n seeds, {100 * LEVEL:.0f} % t-interval of the "
        "mean; last line: ours − paper with the same interval, as if the paper's number were exact; p is Holm-corrected over "
        f"the cells of a pair. {tables.legend('paper')} {_no_validation(configs[paper.columns[0]]['student'], metric)}"
    )
    return tables.framed(caption, note, head, body)


def _of_pair(frame: pd.DataFrame, pair: str) -> pd.DataFrame:
    """Our runs of a pair that the paper has too, made as the preset says."""
    teacher, student = pair.split("-")
    runs = scope(frame, "paper", teacher=teacher, student=student)
    known = [pd.notna(tables.paper_value(row)) for row in runs.to_dict("records")]
    return runs.loc[pd.Series(known, index=runs.index, dtype=bool)]


@functools.cache
def _configs_of(pair: str) -> dict[str, RunConfig]:
    """What we would run for each row of the paper's table, by the paper's name of it."""
    teacher, student = pair.split("-")
    names = {method_name(method): method for method in registry.methods()}
    configs = {
        name: RunConfig.create("paper", teacher=teacher, student=student, method=names[name])
        for name in tables.paper_table().index.drop(["teacher", "student"])
    }
    return {
        "teacher": configs["KD"].teacher_run(),
        "student": configs["KD"].replace(method="supervised"),
        **configs,
    }


def _beside_paper(
    runs: pd.DataFrame, paper: pd.Series, metric: str
) -> dict[str, tuple[dict[str, Any], Paired, float]]:
    """Our arms of one pair by the paper's name: the arm, its difference to the paper's number, and the corrected p of that."""
    arms = {tables.paper_name(row): row for row in tables.arms(runs, metric).to_dict("records")}
    results = [
        minus_constant(Summary(*(row[name] for name in Summary._fields)), paper[method])
        for method, row in arms.items()
    ]
    return dict(
        zip(arms, zip(arms.values(), results, holm(r.p for r in results), strict=True), strict=True)
    )


def _beside(
    ours: tuple[dict[str, Any], Paired, float] | None, config: RunConfig, metric: str
) -> str:
    """Our cell: the value with its difference to the paper's, or why there is none."""
    if ours is None or ours[0]["n"] == 0:
        return f'<td class="none"><small>{escape(_refused(config) or _absent(config, metric))}</small></td>'
    row, result, p = ours
    found = outcome(result, p, tables.smallest("paper"))
    tested = (
        f" {tables.SIGNS[found]} {tables.interval(result.low, result.high, signed=True)}, {tables.p_text(p)}"
        if found
        else ""
    )
    difference = f"<small>{escape(number(result.difference, signed=True) + tested)}</small>"
    return f'<td class="{found or "none"}">{tables.error_html(row)}{difference}</td>'


@functools.cache
def _refused(config: RunConfig) -> str:
    """Why the library does not run this configuration, if it does not."""
    from iekd.config import methods

    try:
        methods.compared(config)
    except PairError:
        return "cannot be compared: feature maps differ in size"
    return ""


# ---------------------------------------------------------------------- README


def readme(frame: pd.DataFrame, preset: str = "class") -> str:
    """The headline table of README.md in Markdown: teacher, student and the methods, with links to the folders of their records."""
    configs = [RunConfig.create(preset, method=method) for method in HEADLINE]
    runs = decisive_runs(frame, configs)
    students = runs[runs["role"] == "student"]
    if "supervised" not in set(students["variant"]):
        return f"There are {NO_RUNS} at {preset} scale.\n"
    paths = dict(
        zip(
            zip(runs["role"], runs["variant"], strict=True),
            runs["path"].str.rsplit("/", n=1).str[0],
            strict=True,
        )
    )
    lines = [
        "| method | n | test error, % | minus student alone, points | minus FT, points |",
        "|---|---|---|---|---|",
    ]
    to_ft = _by_arm(tables.comparison(runs, "ft")) if "ft" in set(students["variant"]) else {}
    for key, row in _by_arm(tables.comparison(runs)).items():
        name = f"[{row['label']}](runs/records/{paths[key]})"
        differences = [
            "; ".join(tables.difference_lines(r)) if r else "—" for r in (row, to_ft.get(key))
        ]
        lines.append(f"| {name} | {row['n']} | {tables.spread(row)} | {' | '.join(differences)} |")
    return f"{_setting(configs[-1])}\n\n" + "\n".join(lines) + f"\n\n{remark(runs)}".rstrip() + "\n"


def _setting(config: RunConfig) -> str:
    images = (
        f"{config.train_images:,} training images" if config.train_images else "all training images"
    )
    size = f" at {config.image_size} × {config.image_size} pixels" if config.image_size else ""
    heavier = config.replace(method="ft").ft_weight / config.inherit_weight
    return (
        f"**{config.preset.capitalize()} scale** ({config.teacher} teaches {config.student}; {config.dataset}{size}, {images}, "
        f"{config.epochs} epochs): {METRICS['last'].lower()}, mean ± standard deviation over n seeds. Differences are paired by seed, "
        f"with {100 * LEVEL:.0f} % interval and p Holm-corrected over a column. {tables.legend(config.preset)} "
        f"Every method has its usual weight; FT's is {heavier:g} times IE-FT's (the book compares them at one weight, too). "
        f"{tuning.size_note([config.replace(method=method) for method in HEADLINE])} "
        "It is a small setting, not the paper's; the book says what it can tell."
    )


def update_readme(frame: pd.DataFrame, preset: str = "class", path: Path = README) -> Path:
    """Write the headline table between the markers of the checkout's README.md, wherever $IEKD_RUNS keeps the records; returns its path.

    Raises `StoreError`, and leaves the file alone, without the runs that it needs, without the file, or without markers in it.
    """
    table = readme(frame, preset)
    if NO_RUNS in table:
        raise StoreError(f"{table.strip()} {path} stays as it is.")
    new, places = MARKERS.subn(
        lambda _: table, path.read_text(encoding="utf-8") if path.exists() else ""
    )
    if places != 1:
        raise StoreError(
            f"{path} needs one place for the table, between <!-- headline:start --> and <!-- headline:end --> on lines alone"
        )
    write_atomic(path, new.encode())
    return path
