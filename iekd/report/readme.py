"""Results in Markdown: the headline table of README.md, and what `iekd table` prints."""

import re
from pathlib import Path

import pandas as pd

from iekd import data
from iekd.checkout import ROOT
from iekd.config import RunConfig
from iekd.errors import StoreError
from iekd.records.store import write_atomic
from iekd.report import phrases, tuning
from iekd.report.arms import decisive_runs, students_of
from iekd.report.claims import NO_RUNS, PLANNED
from iekd.report.comparison import METRICS
from iekd.report.labels import folder, networks
from iekd.report.statistics import LEVEL
from iekd.report.tables import difference_lines, rows_of

# The arms of the headline, IE-FT last; at desk scale the primary ones.
ALONE, KD, FT, IE = ({"method": name} for name in ("supervised", "kd", "ft", "ie-ft"))
PULL, SHUFFLED = IE | {"explore": "none"}, IE | {"explore_target": "shuffled"}
HEADLINE, AT_DESK = (ALONE, KD, FT, IE), (ALONE, FT, PULL, SHUFFLED, IE)
REGIME = {
    "desk": "The pair is the paper's, the training is shorter",
    "paper": "The recipe is that of the authors' code",
}
README = ROOT / "README.md"
MARKERS = re.compile(r"(?<=<!-- headline:start -->\n).*?(?=<!-- headline:end -->)", re.DOTALL)


def markdown(arms: pd.DataFrame) -> str:
    """A table of arms for a terminal."""
    heads = ["data set", "pair", "method", "n", "error, % (mean ± sd)", "95 % interval"]
    lines = []
    for row in arms.itertuples():
        error = phrases.spread(row.mean, row.sd)
        about = [row.dataset, networks(row.pair), row.label, str(row.n)]
        lines.append([*about, error, phrases.interval(row.low, row.high)])
    return _markdown(heads, lines)


def compared(table: pd.DataFrame, baseline: str) -> str:
    """The same for arms compared with a baseline (see `iekd.table`)."""
    heads = ["arm", "n", "error, % (mean ± sd)", f"minus {baseline}, points", "p", "outcome"]
    lines = []
    for row in table.to_dict("records"):
        cells = [row["arm"], str(row["n"]), phrases.spread(row["mean"], row["sd"])]
        if row["arm"] == baseline:
            lines.append([*cells, "—", "—", "—"])
            continue
        limits = row["difference low"], row["difference high"]
        effect = phrases.number(row["difference"], signed=True)
        numbers = f"{effect} {phrases.interval(*limits, True)}"
        lines.append([*cells, numbers, phrases.p_number(row["p"]), row["outcome"]])
    return _markdown(heads, lines)


def _markdown(heads: list[str], lines: list[list[str]]) -> str:
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def readme(frame: pd.DataFrame, preset: str = "class") -> str:
    """The headline table of README.md: teacher, student and methods, linked to their records."""
    arms = AT_DESK if preset == "desk" else HEADLINE
    configs = [RunConfig.create(preset, **arm) for arm in arms]
    runs = decisive_runs(frame, configs)
    found, compared = rows_of(runs, "last", ("supervised", "ft"))
    if not compared["supervised"]:
        return f"There are {NO_RUNS} at {preset} scale.\n"
    folders = {(run["role"], run["variant"]): folder(run) for run in runs.to_dict("records")}
    lines = [
        "| method | n | test error, % | minus student alone, points | minus FT, points |",
        "|---|---|---|---|---|",
    ]
    for arm, row in found.items():
        name = f"[{row['label']}](runs/records/{folders[arm]})"
        cells = [name, str(row["n"]), phrases.spread(row["mean"], row["sd"])]
        for differences in compared.values():
            cells.append("; ".join(difference_lines(differences[arm])) if differences else "—")
        lines.append(f"| {' | '.join(cells)} |")
    table = "\n".join(lines)
    return f"{_setting(configs, runs)}\n\n{table}\n\n{phrases.remark(runs)}".rstrip() + "\n"


def _setting(configs: list[RunConfig], runs: pd.DataFrame) -> str:
    """What a reader needs to know about the runs."""
    config, ft = configs[-1], next(c for c in configs if c.method == "ft")
    size = f" at {config.image_size} × {config.image_size} pixels" if config.image_size else ""
    planned = PLANNED[config.preset]
    missing = students_of(runs).groupby("variant")["seed"].nunique().min() < planned
    regime = REGIME.get(config.preset, "The setting is small, not the paper's")
    sentences = [
        f"**{config.preset.capitalize()} scale** ({config.teacher} teaches {config.student}; "
        f"{config.dataset}{size}, {data.image_count(config):,} training images, {config.epochs} "
        f"epochs): {METRICS['last'].lower()}, mean ± standard deviation over n seeds.",
        f"{planned} seeds of each method are planned." if missing else "",
        f"Differences are paired by seed, with {100 * LEVEL:.0f} % interval and p Holm-corrected "
        f"over a column. {phrases.legend(config.preset)}",
        f"Every method has its usual weight; FT's is {ft.ft_weight / config.inherit_weight:g} "
        "times IE-FT's (the book also compares them at the same weight).",
        tuning.size_note(configs),
        f"{regime}; the book explains what it can show.",
    ]
    return " ".join(filter(None, sentences))


def update_readme(frame: pd.DataFrame, preset: str = "class", path: Path = README) -> Path:
    """Write the headline table between the markers of the checkout's README.md; returns its path.

    Raises `StoreError` and leaves the file alone if the runs that it needs, the file, or its
    markers are missing.
    """
    table = readme(frame, preset)
    if NO_RUNS in table:
        raise StoreError(f"{table.strip()} {path} stays as it is.")
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    new, places = MARKERS.subn(lambda _: table, before)
    if places != 1:
        raise StoreError(
            f"{path} needs one place for the table, between <!-- headline:start --> and "
            "<!-- headline:end --> on lines alone"
        )
    write_atomic(path, new.encode())
    return path
