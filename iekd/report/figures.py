"""Figures of the book in one style, each an opaque white card, for light and dark pages.

A frame has one row per run (or epoch) and the column `label`; the colour of a label is that of its
arm (`labels.colour`), and labels are clear without it. Errors are in percent.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iekd.report.claims import NO_RUNS
from iekd.report.comparison import ERRORS, summarised
from iekd.report.labels import COLOURS, colour, wrapped
from iekd.report.statistics import paired, summary

# Inches and points: on a phone, a figure nearly keeps its size; its smallest label has 9 pixels.
WIDTH, SMALL = 4.8, 9.5
INK, FAINT = "#1a1a1a", "#8c8c8c"
DASHED = (0, (4, 3))
AXIS = {
    "last": "Test error after the last epoch (%)",
    "val_selected": "Test error, validation-selected epoch (%)",
    "best_on_test": "Lowest test error of the evaluated epochs (%, biased)",
    "last_exact": "Test error, exact test images (%)",
    # Measured by iekd.analysis.metrics.
    "cka_halves": "CKA between the two halves of the feature",
    "rise_train": "Rise in the training loss under weight noise",
}
# Marker and colour of an outcome; the others are black dots.
OUTCOMES = {"lower": ("v", COLOURS["ft"]), "higher": ("^", COLOURS["ie-ft"])}


def style() -> None:
    """Set the book's style for all figures drawn after this; called by every function here."""
    sns.set_theme(context="notebook", style="ticks", font="DejaVu Sans")
    plt.style.use("iekd.report.book")


def _figure(*grid: int, **settings: Any) -> tuple[Figure, Any]:
    """A figure and its axes, closed: a notebook shows what a cell returns, and only that."""
    style()
    fig, axes = plt.subplots(*grid, **settings)
    plt.close(fig)
    return fig, axes


def by_label(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of each label, in the order of appearance."""
    return {str(name): runs for name, runs in frame.groupby("label", sort=False)}


def shade(runs: pd.DataFrame) -> str:
    """The colour of the arm of these rows."""
    return colour(runs.iloc[0].to_dict())


def seeds_plot(
    frame: pd.DataFrame,
    order: Sequence[str] | None = None,
    metric: str = "last",
    reference: str | None = None,
) -> Figure:
    """Every seed as a point, every arm with mean (bar) and 95 % interval; arms without runs say so.

    `reference`: label of an arm whose mean is drawn as a dashed vertical line.
    """
    arms = by_label(frame)
    order = list(order or arms)
    fig, ax = rows_of(order)
    for y, name in enumerate(order):
        if name not in arms:
            _empty_row(ax, y)
            continue
        values = arms[name][metric].dropna().to_numpy()
        _row(ax, y, values, summarised(arms[name], metric), shade(arms[name]))
    if reference in arms:
        mark(ax, summary(arms[reference][metric]).mean, f"mean of {reference}")
    ax.set_xlabel(AXIS.get(metric, metric))
    return fig


def paired_plot(
    frame: pd.DataFrame, baseline: str, order: Sequence[str] | None = None, metric: str = "last"
) -> Figure:
    """Differences from the arm labelled `baseline`, seed by seed, with mean and 95 % interval."""
    arms = by_label(frame)
    errors = {name: runs.set_index("seed")[metric] for name, runs in arms.items()}
    order = [name for name in order or arms if name != baseline]
    fig, ax = rows_of(order)
    for y, name in enumerate(order):
        if not {name, baseline} <= errors.keys():
            _empty_row(ax, y)
            continue
        result = paired(errors[name], errors[baseline])
        values = (errors[name] - errors[baseline]).dropna().to_numpy()
        found = summary(values)._replace(low=result.low, high=result.high)
        _row(ax, y, values, found, shade(arms[name]))
    mark(ax, 0.0, baseline)
    label = f"{AXIS.get(metric, metric)}\nminus baseline, same seed"
    if metric in ERRORS:
        label = "Test error minus baseline (points)\nsame seed; below 0 is better"
    ax.set_xlabel(label)
    return fig


def forest(contrasts: pd.DataFrame, smallest: float) -> Figure:
    """One row per contrast: difference, marked by outcome, 95 % interval; a band of ±`smallest`.

    Columns claim, rival, n, effect, low, high, outcome.
    """
    rows = list(contrasts.itertuples())
    fig, ax = rows_of([""] * len(rows))
    fig.set_size_inches(WIDTH, 1.3 + 0.5 * len(contrasts))
    ax.set_ylim(len(rows) - 0.6, -0.8)  # a row's name is above it
    ax.axvspan(-smallest, smallest, color=FAINT, alpha=0.15, linewidth=0)
    beside = {"xycoords": ax.get_yaxis_transform(), "va": "center", "fontsize": SMALL}
    for y, row in enumerate(rows):
        marker, paint = OUTCOMES.get(row.outcome, ("o", INK))
        name = f"{row.claim}: against {row.rival} (n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{row.n})"
        ax.annotate(textwrap.fill(name, 58), (0, y - 0.42), **beside)
        ax.plot([row.low, row.high], [y, y], color=FAINT, linewidth=2, solid_capstyle="butt")
        ax.plot(row.effect, y, marker, color=paint, markersize=7)
    mark(ax, 0.0, "no difference")
    what = "Test error of the claim's arm minus that of its rival (points)"
    ax.set_xlabel(f"{what}\nbelow 0 favours the claim")
    return fig


def rows_of(order: Sequence[str], small: bool = False) -> tuple[Figure, Axes]:
    """A figure with one horizontal row per label, the first on top; whole sentences are `small`."""
    labels = [wrapped(name, 26 if small else 22) for name in order]
    most = max((label.count("\n") + 1 for label in labels), default=1)
    high = max(0.46, 0.1 + (0.16 if small else 0.18) * most)
    fig, ax = _figure(figsize=(WIDTH, 1.1 + high * len(order)))
    ax.set_yticks(range(len(order)), labels, fontsize=SMALL if small else None)
    ax.set_ylim(len(order) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    return fig, ax


def _row(ax: Axes, y: int, values: np.ndarray, s: Any, paint: str) -> None:
    """One arm: seeds as points above, mean and interval below, so that neither hides the other."""
    points = {"alpha": 0.55, "markersize": 5.5, "markeredgewidth": 0}
    ax.plot(values, np.full(len(values), y - 0.13), "o", color=paint, **points)
    if np.isfinite(s.low):
        ax.plot([s.low, s.high], [y + 0.15] * 2, color=paint, linewidth=2, solid_capstyle="butt")
    ax.plot(s.mean, y + 0.15, "|", color=paint, markersize=11, markeredgewidth=3)


def _empty_row(ax: Axes, y: int) -> None:
    """An arm without records keeps its row and says so."""
    middle = {"ha": "center", "va": "center", "fontsize": SMALL, "color": FAINT}
    ax.annotate(NO_RUNS, (0.5, y), xycoords=ax.get_yaxis_transform(), **middle)


def mark(ax: Axes, x: float, text: str) -> None:
    """A dashed vertical line with its name above the axes."""
    ax.axvline(x, color=INK, linewidth=1, linestyle=DASHED, zorder=1)
    above = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center", "va": "bottom"}
    ax.annotate(text, (x, 1.0), xycoords=ax.get_xaxis_transform(), fontsize=SMALL, **above)


def curves(
    histories: pd.DataFrame,
    metric: str = "test_error",
    ylabel: str = "Test error (%)",
    x: str = "epoch",
    xlabel: str = "Epoch",
) -> Figure:
    """Mean over the seeds by epoch (or other `x`); a band from the lowest to the highest seed.

    `histories`: long frame with columns label, seed, `x` and the metric; labels in the order of
    appearance.
    """
    fig, ax = _figure(figsize=(WIDTH, 4.0))
    dashes = ["-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2))]
    for i, (name, runs) in enumerate(by_label(histories.dropna(subset=[metric])).items()):
        by_x, paint = runs.groupby(x)[metric], shade(runs)
        mean = by_x.mean()
        ax.fill_between(mean.index, by_x.min(), by_x.max(), color=paint, alpha=0.15, linewidth=0)
        line = {"linewidth": 1.8, "linestyle": dashes[i % len(dashes)], "label": name}
        ax.plot(mean.index, mean, color=paint, **line)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.margins(x=0.01)
    below(ax)
    return fig


def below(ax: Axes, **settings: Any) -> None:
    """The legend below the axes, where it hides nothing."""
    names = ax.get_legend_handles_labels()[1]
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2), "fontsize": SMALL}
    columns = 2 if max(map(len, names), default=0) <= 22 else 1
    ax.legend(**{**place, "handlelength": 3.2, "ncols": columns, **settings})


def images_grid(
    images: Any, titles: Sequence[str] | None = None, columns: int = 8, size: float = 0.9
) -> Figure:
    """Images (N, C, H, W), uint8 with 1 or 3 channels, at most `size` inches each, unsmoothed."""
    pictures = np.asarray(images).transpose(0, 2, 3, 1)
    columns = min(columns, len(pictures))
    size = min(size, WIDTH / columns)
    rows = -(-len(pictures) // columns)
    height = size + (0.25 if titles else 0.0)
    fig, axes = _figure(rows, columns, figsize=(columns * size, rows * height), squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for i, (ax, picture) in enumerate(zip(axes.flat, pictures, strict=False)):
        ax.imshow(picture.squeeze(), cmap="gray", interpolation="nearest", vmin=0, vmax=255)
        ax.set_title(titles[i] if titles else "", fontsize=SMALL, pad=2)
    return fig


def maps_grid(
    images: Any, maps: Mapping[str, Any], titles: Sequence[str], size: float = 0.38
) -> Figure:
    """Images (N, C, H, W), uint8, on top; below them, by name, a row of maps (N, H, W).

    Red is evidence for the class, blue against it, white neither; every map has its own scale.
    """
    rows, columns = len(maps) + 1, len(images)
    size = min(size, (WIDTH - 1.1) / columns)
    shape = {"figsize": (columns * size + 1.0, rows * size + 0.3), "squeeze": False}
    fig, axes = _figure(rows, columns, **shape)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        sns.despine(ax=ax, left=True, bottom=True)
    for ax, picture, title in zip(axes[0], np.asarray(images), titles, strict=True):
        shown = picture.transpose(1, 2, 0).squeeze()
        ax.imshow(shown, cmap="gray", interpolation="nearest", vmin=0, vmax=255)
        ax.set_title(title, fontsize=SMALL, pad=2)
    for line, (name, values) in zip(axes[1:], maps.items(), strict=True):
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=SMALL)
        for ax, one in zip(line, np.asarray(values), strict=True):
            reach = np.abs(one).max() or 1.0
            ax.imshow(one, cmap="RdBu_r", interpolation="nearest", vmin=-reach, vmax=reach)
    fig.set_layout_engine("constrained", w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)
    return fig


def boxes_grid(
    images: Any, found: Mapping[str, Sequence[Mapping[str, Any]]], size: float = 1.6
) -> Figure:
    """Images (N, C, S, S), uint8, one row each: per name, a column of them with their `boxes`
    (n, 4), fractions of the image, in the colours of their `labels` (n,), from 1.
    """
    rows, columns = len(images), len(found)
    size = min(size, WIDTH / columns)
    shape = {"figsize": (columns * size, rows * size + 0.2), "squeeze": False}
    fig, axes = _figure(rows, columns, **shape)
    paint = [*sns.color_palette("bright")]
    for column, (name, answers) in zip(axes.T, found.items(), strict=True):
        column[0].set_title(name, fontsize=SMALL, pad=2)
        for ax, picture, answer in zip(column, np.asarray(images), answers, strict=True):
            ax.set(xticks=[], yticks=[])
            sns.despine(ax=ax, left=True, bottom=True)
            side = picture.shape[-1]
            ax.imshow(picture.transpose(1, 2, 0), extent=(0, side, side, 0))
            for label, box in zip(
                answer["labels"], side * np.asarray(answer["boxes"]), strict=True
            ):
                (left, top, right, bottom), colour = box, paint[(int(label) - 1) % len(paint)]
                edges = [left, right, right, left, left], [top, top, bottom, bottom, top]
                ax.plot(*edges, color=colour, linewidth=1)
    fig.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    return fig
