"""Figures of the book in one style, each a `Figure` on an opaque white card, for light and dark pages.

Colours follow Okabe and Ito, distinguishable with colour-vision deficiency, and are fixed for a method throughout the
book; labels always say the same without colour. Errors are in percent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iekd.report.statistics import paired, summary
from iekd.report.tables import ERRORS

INK, FAINT = "#1a1a1a", "#8c8c8c"
COLOURS = {
    "Teacher": "#000000",
    "Student alone": "#6e6e6e",
    "KD": "#b58900",  # Okabe and Ito's orange, darker for contrast on white
    "FT": "#0072b2",
    "IE-FT": "#d55e00",
    "inheritance only (L1)": "#56a0d3",
    "exploration only (L1)": "#009e73",
}
AXIS = {
    "last": "Test error after the last epoch (%)",
    "val_selected": "Test error, validation-selected epoch (%)",
    "best_on_test": "Best test error over all epochs (%, biased)",
    "last_exact": "Test error, exact test images (%)",
    # What iekd.analysis.metrics measures.
    "cka_halves": "CKA between the two halves of the feature",
    "rise_train": "Rise of the training loss under weight noise",
}
OTHER = "#a3527f"  # the ablations share one colour; their labels tell them apart
OUTCOMES = {
    "lower": ("v", COLOURS["FT"]),
    "higher": ("^", COLOURS["IE-FT"]),
}  # marker and colour; others are black dots


def style() -> None:
    """Set the book's style for all figures drawn after this; called by every function here."""
    sns.set_theme(context="notebook", style="ticks", font="DejaVu Sans")
    plt.rcParams.update(
        {
            "figure.facecolor": "white",
            "axes.facecolor": "white",
            "savefig.facecolor": "white",
            "figure.constrained_layout.use": True,
            "savefig.dpi": 110,
            "figure.dpi": 110,
            "text.color": INK,
            "axes.labelcolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "axes.edgecolor": FAINT,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#e6e6e6",
            "axes.axisbelow": True,
            "font.size": 11,
            "axes.labelsize": 11,
            "axes.titlesize": 12,
            "xtick.labelsize": 10,
            "ytick.labelsize": 11,
            "legend.frameon": False,
            "svg.fonttype": "path",
            "svg.hashsalt": "iekd",
        }
    )


def colour(label: str) -> str:
    """The colour of a method, by its label; 'FT: something of it' has that of FT."""
    return COLOURS.get(label.partition(": ")[0], OTHER)


def seeds_plot(
    frame: pd.DataFrame,
    order: Sequence[str] | None = None,
    metric: str = "last",
    reference: str | None = None,
) -> Figure:
    """Every seed a point, every arm (column `label`) a line with its mean (bar) and 95 % interval; arms of `order` without runs say so.

    `reference`: label of an arm whose mean is drawn as a dashed vertical line.
    """
    order = list(order or dict.fromkeys(frame["label"]))
    fig, ax = _rows(order)
    for y, name in enumerate(order):
        if name not in set(frame["label"]):
            _empty_row(ax, y)
            continue
        values = frame.loc[frame["label"] == name, metric].dropna().to_numpy()
        _row(ax, y, values, summary(values), colour(name))
    if reference in set(frame["label"]):
        mean = summary(frame.loc[frame["label"] == reference, metric]).mean
        _mark(ax, mean, f"mean of {reference}")
    ax.set_xlabel(AXIS[metric])
    plt.close(fig)  # the notebook shows the figure that is returned, once
    return fig


def paired_plot(
    frame: pd.DataFrame, baseline: str, order: Sequence[str] | None = None, metric: str = "last"
) -> Figure:
    """Differences to the arm labelled `baseline`, seed by seed, with mean and 95 % interval; for errors, left of zero is better."""
    errors = {name: runs.set_index("seed")[metric] for name, runs in frame.groupby("label")}
    order = [name for name in order or dict.fromkeys(frame["label"]) if name != baseline]
    fig, ax = _rows(order)
    for y, name in enumerate(order):
        if name not in errors or baseline not in errors:
            _empty_row(ax, y)
            continue
        result = paired(errors[name], errors[baseline])
        values = (errors[name] - errors[baseline]).dropna().to_numpy()
        _row(
            ax, y, values, summary(values)._replace(low=result.low, high=result.high), colour(name)
        )
    _mark(ax, 0.0, baseline)
    ax.set_xlabel(
        "Test error minus baseline, same seed (points)\nbelow 0 is better"
        if metric in ERRORS
        else f"{AXIS[metric]}\nminus baseline, same seed"
    )
    plt.close(fig)  # the notebook shows the figure that is returned, once
    return fig


def forest(contrasts: pd.DataFrame, smallest: float) -> Figure:
    """Every contrast a row (columns claim, rival, n, effect, low, high, outcome): difference with the sign and colour of its outcome, 95 %
    interval, and a band of ±`smallest` points."""
    fig, ax = _rows(
        [f"{row.claim}: against {row.rival} (n = {row.n})" for row in contrasts.itertuples()]
    )
    fig.set_size_inches(9.5, 1.3 + 0.3 * len(contrasts))
    ax.axvspan(-smallest, smallest, color=FAINT, alpha=0.15, linewidth=0)
    for y, row in enumerate(contrasts.itertuples()):
        marker, shade = OUTCOMES.get(row.outcome, ("o", INK))
        ax.plot([row.low, row.high], [y, y], color=FAINT, linewidth=2, solid_capstyle="butt")
        ax.plot(row.effect, y, marker, color=shade, markersize=7)
    ax.tick_params(axis="y", labelsize=9)
    _mark(ax, 0.0, "no difference")
    ax.set_xlabel(
        "Test error of the claim's arm minus that of its rival (points)\nbelow 0 is in favour of the claim"
    )
    plt.close(fig)  # the notebook shows the figure that is returned, once
    return fig


def twice(frame: pd.DataFrame) -> Figure:
    """Runs that were trained twice (columns label, last, last_again): second test error over first; on the line they agree."""
    style()
    fig, ax = plt.subplots(figsize=(4.6, 4.2))
    for marker, (name, runs) in zip("osD^vP*X", frame.groupby("label", sort=False), strict=False):
        ax.plot(
            runs["last"],
            runs["last_again"],
            marker,
            color=colour(name),
            alpha=0.7,
            markeredgewidth=0,
            label=name,
        )
    ends = (
        frame[["last", "last_again"]].to_numpy().min() - 0.3,
        frame[["last", "last_again"]].to_numpy().max() + 0.3,
    )
    ax.plot(ends, ends, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    ax.set(
        xlabel="Test error, first training (%)",
        ylabel="Test error, second training (%)",
        xlim=ends,
        ylim=ends,
        aspect="equal",
    )
    ax.legend(fontsize=9)
    plt.close(fig)  # the notebook shows the figure that is returned, once
    return fig


def _rows(order: Sequence[str]) -> tuple[Figure, Axes]:
    """A figure with one horizontal row per label, the first on top."""
    style()
    fig, ax = plt.subplots(figsize=(7.2, 1.1 + 0.46 * len(order)))
    ax.set_yticks(range(len(order)), order)
    ax.set_ylim(len(order) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    return fig, ax


def _row(ax: Axes, y: int, values: np.ndarray, s: Any, shade: str) -> None:
    """One arm: the seeds as points above, mean and interval below, so that neither hides the other."""
    ax.plot(
        values,
        np.full(len(values), y - 0.13),
        "o",
        color=shade,
        alpha=0.55,
        markersize=5.5,
        markeredgewidth=0,
    )
    if np.isfinite(s.low):
        ax.plot([s.low, s.high], [y + 0.15] * 2, color=shade, linewidth=2, solid_capstyle="butt")
    ax.plot(s.mean, y + 0.15, "|", color=shade, markersize=11, markeredgewidth=3)


def _empty_row(ax: Axes, y: int) -> None:
    """An arm without records keeps its row and says so."""
    ax.annotate(
        "no runs yet",
        (0.5, y),
        xycoords=ax.get_yaxis_transform(),
        ha="center",
        va="center",
        fontsize=9,
        color=FAINT,
    )


def _mark(ax: Axes, x: float, text: str) -> None:
    """A dashed vertical line with its name above the axes."""
    ax.axvline(x, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    place = ax.get_xaxis_transform()
    ax.annotate(
        text,
        (x, 1.0),
        xycoords=place,
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=9,
    )


def curves(
    histories: pd.DataFrame,
    metric: str = "test_error",
    ylabel: str = "Test error (%)",
    x: str = "epoch",
    xlabel: str = "Epoch",
) -> Figure:
    """Mean over the seeds per epoch (or other `x`), with the range between the lowest and highest seed as a band.

    `histories`: long frame with columns label, seed, `x` and the metric; labels in the order of appearance.
    """
    style()
    fig, ax = plt.subplots(figsize=(7.2, 3.8))
    styles = ["-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2))]
    for i, (name, runs) in enumerate(
        histories.dropna(subset=[metric]).groupby("label", sort=False)
    ):
        by_x = runs.groupby(x)[metric]
        mean, shade = by_x.mean(), colour(str(name))
        ax.fill_between(mean.index, by_x.min(), by_x.max(), color=shade, alpha=0.15, linewidth=0)
        ax.plot(
            mean.index,
            mean,
            color=shade,
            linewidth=1.8,
            linestyle=styles[i % len(styles)],
            label=str(name),
        )
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.margins(x=0.01)
    ax.legend(handlelength=3.2)
    plt.close(fig)  # the notebook shows the figure that is returned, once
    return fig


def images_grid(
    images: Any, titles: Sequence[str] | None = None, columns: int = 8, size: float = 0.9
) -> Figure:
    """Images (N, C, H, W), uint8 tensor or array with 1 or 3 channels, `size` inches each, pixels shown as they are."""
    style()
    pictures = np.asarray(images).transpose(0, 2, 3, 1)
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    height = size + (0.25 if titles else 0.0)
    fig, axes = plt.subplots(rows, columns, figsize=(columns * size, rows * height), squeeze=False)
    for i, ax in enumerate(axes.flat):
        ax.axis("off")
        if i < len(pictures):
            ax.imshow(pictures[i].squeeze(), cmap="gray", interpolation="nearest", vmin=0, vmax=255)
            ax.set_title(titles[i] if titles else "", fontsize=9, pad=2)
    plt.close(fig)  # the notebook shows the figure that is returned, once
    return fig
