import io
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from iekd.report import figures, labels
from iekd.report.claims import CLAIMS

VARIANTS = {
    "Teacher": "teacher",
    "Student alone": "supervised",
    "KD": "kd",
    "FT": "ft",
    "IE-FT": "ie-ft",
    "IE-FT (inherit L1, explore CKA)": "ie-ft-explore=cka",
}
LABELS = list(VARIANTS)


def runs() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.4, 5)
    rows = [
        dict(
            label=name, variant=variant, seed=k, last=40 - 1.2 * i + noise[k] + rng.normal(0, 0.25)
        )
        for i, (name, variant) in enumerate(VARIANTS.items())
        for k in range(5)
    ]
    return pd.DataFrame(rows).drop(index=13)  # one seed of KD is missing


def histories() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    grid = [
        (name, seed, epoch) for name in LABELS[1:5] for seed in range(3) for epoch in range(1, 61)
    ]
    table = pd.DataFrame(grid, columns=["label", "seed", "epoch"])
    level = table["label"].map(LABELS.index)
    return table.assign(
        test_error=60 * np.exp(-table["epoch"] / 20) + 30 - level + rng.normal(0, 0.8, len(table))
    )


FIGURES = {
    "seeds": lambda: figures.seeds_plot(runs(), LABELS, reference="Student alone"),
    "paired": lambda: figures.paired_plot(runs(), "Student alone", LABELS[2:]),
    "curves": lambda: figures.curves(histories()),
    "images": lambda: figures.images_grid(
        np.random.default_rng(0).integers(0, 256, (11, 3, 32, 32), dtype=np.uint8)
    ),
}


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("kind", ["svg", "png"])
def test_figures_are_small_and_opaque(name, kind):
    fig, target = FIGURES[name](), io.BytesIO()
    fig.savefig(target, format=kind)
    plt.close(fig)
    assert 2_000 < len(target.getvalue()) < 100_000
    assert fig.get_facecolor() == (1, 1, 1, 1)


def test_methods_keep_their_colour():
    by_label = figures.by_label(runs())
    assert len({figures.shade(arm) for arm in by_label.values()}) == len(LABELS)
    renamed = runs().query("variant == 'ft'").assign(label="FT: whole factor")
    assert figures.shade(renamed) == labels.COLOURS["ft"]  # by what it is, whatever it is called
    assert labels.colour({"variant": "supervised", "role": "teacher"}) == labels.COLOURS["teacher"]
    assert labels.colour({"label": "KD"}) == labels.OTHER


def test_a_forest_is_coloured_by_outcome_and_its_intervals_are_not():
    rows = [("lower", -1.0), ("higher", 1.0), ("equivalent", 0.1), ("inconclusive", -0.9)]
    table = pd.DataFrame(
        [
            {
                "claim": o,
                "rival": "FT",
                "n": 5,
                "effect": e,
                "low": e - 0.5,
                "high": e + 0.5,
                "outcome": o,
            }
            for o, e in rows
        ]
    )
    lines = figures.forest(table, 0.5).axes[0].lines
    markers = [
        (line.get_marker(), line.get_color()) for line in lines if len(line.get_xdata()) == 1
    ]
    assert markers == [("v", "#0072b2"), ("^", "#d55e00"), ("o", figures.INK), ("o", figures.INK)]
    assert {
        line.get_color()
        for line in lines
        if len(line.get_xdata()) == 2 and line.get_linewidth() == 2
    } == {figures.FAINT}


def test_other_quantities_than_errors_say_what_they_are():
    table = runs().rename(columns={"last": "cka_halves"})
    fig = figures.paired_plot(table, "FT", metric="cka_halves")
    assert (
        fig.axes[0].get_xlabel()
        == "CKA between the two halves of the feature\nminus baseline, same seed"
    )
    by_sigma = histories().rename(columns={"epoch": "sigma"})
    fig = figures.curves(by_sigma, "test_error", "Loss", x="sigma", xlabel="Size of the noise")
    assert fig.axes[0].get_xlabel() == "Size of the noise" and list(
        fig.axes[0].lines[0].get_xdata()
    ) == list(range(1, 61))


def test_paired_plot_shows_common_seeds_only():
    fig = figures.paired_plot(runs(), "Student alone", ["KD"])
    assert len(fig.axes[0].lines[0].get_xdata()) == 4
    plt.close(fig)


def test_arms_without_runs_keep_their_row():
    runs = pd.DataFrame({"label": "FT", "variant": "ft", "seed": [0, 1], "last": [10.0, 11.0]})
    for figure in (
        figures.seeds_plot(runs, ["FT", "IE-FT"], reference="KD"),
        figures.paired_plot(runs, "FT", ["IE-FT"]),
        figures.paired_plot(runs, "KD"),
    ):
        assert "no runs yet" in [text.get_text() for text in figure.axes[0].texts]
        plt.close(figure)


ROOT = Path(__file__).parents[2]
SIZE = re.compile(r"(?:fontsize=|labelsize=|fontsize\\?[\"']: |set_fontsize\()([\d.]+)")


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_as_wide_as_a_phone(name):
    assert FIGURES[name]().get_size_inches()[0] <= figures.WIDTH


def test_no_label_is_smaller_than_a_phone_can_show():
    """`tests/browser` measures the rest on the built pages."""
    sources = [*(ROOT / "iekd" / "report").glob("*.py"), *(ROOT / "book").glob("*.ipynb")]
    sizes = [float(size) for file in sources for size in SIZE.findall(file.read_text("utf-8"))]
    figures.style()
    sizes += [plt.rcParams[f"{tick}.labelsize"] for tick in ("xtick", "ytick", "axes")]
    assert min(sizes) >= figures.SMALL


ARMS = [f"IE-FT, inherit weight {k}, explore weight {k}" for k in (1, 5, 10, 100)]


@pytest.mark.parametrize("names, small", [(ARMS, False), ([c.sentence for c in CLAIMS], True)])
def test_labels_of_several_lines_do_not_touch(names, small):
    fig, ax = figures.rows_of(names, small)
    fig.draw_without_rendering()
    boxes = [label.get_window_extent() for label in ax.get_yticklabels()]
    assert any("\n" in label.get_text() for label in ax.get_yticklabels())
    assert all(above.y0 > below.y1 for above, below in zip(boxes, boxes[1:], strict=False))


@pytest.mark.filterwarnings("error")
def test_the_rows_of_maps_have_their_names_in_the_picture():
    images, maps = (
        np.zeros((10, 3, 8, 8), np.uint8),
        np.random.default_rng(0).normal(size=(10, 8, 8)),
    )
    fig = figures.maps_grid(images, {"a rather long name": maps, "b": maps}, [*"0123456789"])
    fig.savefig(io.BytesIO())
    for ax in fig.axes:
        box = ax.yaxis.label.get_window_extent()
        assert not ax.get_ylabel() or box.x0 >= 0
