"""The outcome in one sentence and one figure: the first thing that a reader asks."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from iekd.report import figures
from iekd.report.claims import SMALLEST
from iekd.report.labels import COLOURS
from iekd.report.phrases import difference, number
from iekd.report.statistics import Paired
from iekd.report.verdicts import SIGNS, pairs

# The method's central claims: better than its base, at the weights of each and at one weight, and
# thanks to its exploration.
HEART = ("ie-ft", "ie-ft-weight", "exploration")
FOUND = ("supported", "reproduced", "contradicted", "not reproduced", "equivalent", "inconclusive")
# Marker and colour of a verdict.
LOOK = {
    "supported": ("v", COLOURS["ft"]),
    "reproduced": ("v", COLOURS["ft"]),
    "contradicted": ("^", COLOURS["ie-ft"]),
    "not reproduced": ("^", COLOURS["ie-ft"]),
    "equivalent": ("s", figures.INK),
    "inconclusive": ("o", figures.INK),
    "open": (".", figures.FAINT),
}


def sentence(board: pd.DataFrame) -> str:
    """How many claims have each verdict at this board's scale, and those in `HEART` with numbers.

    `board`: see `verdicts.board`. Markdown.
    """
    preset, verdicts = board["preset"].iloc[0], board["verdict"]
    tested = verdicts[verdicts.isin(FOUND)]
    if tested.empty:
        return f"At {preset} scale, no claim has been tested yet."
    counts = [f"{(tested == name).sum()} {name}" for name in FOUND if (tested == name).any()]
    *first, last = counts
    listed = f"{', '.join(first)} and {last}" if first else last
    claims = "1 claim has" if len(tested) == 1 else f"{len(tested)} claims have"
    text = f"At {preset} scale, {claims} been tested: {listed}."

    heart = board[board["id"].isin(HEART) & verdicts.isin(FOUND)]
    return " ".join([text, *map(told, heart.to_dict("records"))])


def told(row: Mapping[str, Any]) -> str:
    """'*IE-FT ends with a lower error than FT*: **supported** (−0.52 [...] points, ...).'

    For a row of a board; if nothing can be compared, the reason replaces the numbers.
    """
    if row["n"] < 2:
        return f"*{row['sentence'].rstrip('.')}*: **{row['verdict']}** ({row['note']})."
    result = Paired(row["n"], row["effect"], float("nan"), row["low"], row["high"], row["p"])
    numbers = f"{difference(result, unit=' points')}, {pairs(row)}"
    return f"*{row['sentence'].rstrip('.')}*: **{row['verdict']}** ({numbers})."


def by_verdict(board: pd.DataFrame) -> str:
    """Claims about errors, in brief: '**supported**: *A ends below B* (−0.40 points); ...'."""
    parts = []
    for name in SIGNS:
        rows = board[board["verdict"] == name].to_dict("records")
        claims = [
            f"*{row['sentence'].rstrip('.')}*"
            + (f" ({number(row['effect'], signed=True)} points)" if row["n"] else "")
            for row in rows
        ]
        parts += [f"**{name}**: {'; '.join(claims)}"] if claims else []
    return "; ".join(parts) + "."


def picture(board: pd.DataFrame) -> Figure:
    """One row per claim about errors: the difference that decides it, with its 95 % interval.

    Sign and colour are those of the verdict; the band marks differences of no interest.
    """
    rows = board[(board["metric"] == "") & (board["n"] >= 2)].to_dict("records")
    fig, ax = figures.rows_of([row["sentence"] for row in rows], small=True)
    fig.set_figheight(fig.get_figheight() + 0.6)  # for the legend
    bound = SMALLEST[board["preset"].iloc[0]]
    ax.axvspan(-bound, bound, color=figures.FAINT, alpha=0.15, linewidth=0)
    for y, row in enumerate(rows):
        marker, paint = LOOK[row["verdict"]]
        limits = [row["low"], row["high"]]
        ax.plot(limits, [y, y], color=figures.FAINT, linewidth=2, solid_capstyle="butt")
        ax.plot(row["effect"], y, marker, color=paint, markersize=7)
    figures.mark(ax, 0.0, "no difference")
    ax.set_xlabel("Difference in test error (points)\nbelow 0 favours the claim")

    # The verdicts that occur.
    handles = []
    for name in dict.fromkeys(row["verdict"] for row in rows):
        marker, paint = LOOK[name]
        line = Line2D([], [], linestyle="", marker=marker, color=paint)
        line.set_label(f"{SIGNS[name]} {name}")
        handles.append(line)
    fig.legend(handles=handles, ncols=2, loc="outside lower center", fontsize=figures.SMALL)
    return fig
