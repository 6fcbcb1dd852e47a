"""A method's weights: what they mean on maps of another size, and how they were chosen.

From a small grid, the one with the lowest validation error is chosen. Test errors play no part. The
grid (runs/tuning.yaml) gives every method the same budget: its usual weights times 0.3, 1 and 3,
with one pilot seed.
"""

from collections.abc import Sequence

import pandas as pd

from iekd import data
from iekd.config import RunConfig
from iekd.config.reads import fields_of
from iekd.networks import feature_shapes
from iekd.report.labels import method_name

# A term grows with this power of the number of positions of the feature maps that it compares: a
# mean over the positions of maps of unit length, a mean over the values of factors of unit length,
# a sum. Other weights mean the same on maps of any size, except for NST's, which has no such law.
SIZE_LAW = {"at_weight": -1.0, "od_weight": 1.0, "ab_weight": 1.0}
SIZE_LAW |= dict.fromkeys(("ft_weight", "inherit_weight", "explore_weight"), -0.5)
PAPER_SIDE = data.FACTS["cifar10"].side  # pixels; weights were published for this size


def weights(config: RunConfig) -> dict[str, float]:
    """The weights of a run's losses by name, as far as its method reads them."""
    fields = fields_of(config.method)
    names = [name for name in fields if name.endswith("_weight") or name == "kd_alpha"]
    return {name: getattr(config, name) for name in names}


def map_side(config: RunConfig, pixels: int = 0) -> int:
    """Side of the student's last feature map, for the run's own images or side `pixels`."""
    side = pixels or config.image_size or data.FACTS[config.dataset].side
    shapes = feature_shapes(config.student, (3, side, side))
    return [shape for name, shape in shapes.items() if name.startswith("stage")][-1][-1]


def size_note(configs: Sequence[RunConfig]) -> str:
    """How much more or less the weights of these runs count than in the paper; '' if none does."""
    if not configs or data.has_boxes(configs[0].dataset):  # the paper's detector is not known
        return ""
    ours, theirs = map_side(configs[0]), map_side(configs[0], PAPER_SIDE)
    counts: dict[float, list[str]] = {}
    for name in dict.fromkeys(name for config in configs for name in weights(config)):
        if name in SIZE_LAW and ours != theirs:
            counts.setdefault((ours / theirs) ** (2 * SIZE_LAW[name]), []).append(short(name))
    if not counts:
        return ""
    listed = [f"{n:g} times as much for {', '.join(names)}" for n, names in counts.items()]
    sizes = f"{ours} × {ours} positions instead of the paper's {theirs} × {theirs}"
    return f"The last feature maps have {sizes}, so a weight counts {'; '.join(listed)}."


def search(frame: pd.DataFrame, configs: Sequence[RunConfig]) -> pd.DataFrame:
    """One row per run of the grid: method, label, weights (text), error (validation, last
    epoch, percent; NaN without a record), usual (nothing differs from the preset), chosen, edge
    (chosen, and the grid ends there).

    The lowest error is chosen, with ties to the usual weight; nothing while a run is missing.
    """
    errors = frame.set_index("path")["last_validation"] if len(frame) else pd.Series(dtype=float)
    paths = pd.Series([c.path for c in configs])
    table = pd.DataFrame({"method": [c.method for c in configs]})
    table["label"] = table["method"].map(method_name)
    table["weights"] = list(map(_text, configs))
    table["error"] = paths.map(errors).astype(float)
    table["usual"] = [not c.changed() for c in configs]
    table["path"] = paths
    table["chosen"] = table["edge"] = False
    for _, runs in table.groupby("method", sort=False):
        if runs["error"].isna().any():
            continue
        best = runs.sort_values(["error", "usual"], ascending=[True, False], kind="stable").index[0]
        table.loc[best, "chosen"] = True
        table.loc[best, "edge"] = best in (runs.index[0], runs.index[-1])
    return table


def chosen(frame: pd.DataFrame, configs: Sequence[RunConfig]) -> dict[str, RunConfig]:
    """The chosen run of every method that has one, by method."""
    by_path = {c.path: c for c in configs}
    table = search(frame, configs)
    return {row.method: by_path[row.path] for row in table[table["chosen"]].itertuples()}


def _text(config: RunConfig) -> str:
    """'inherit 50, explore 50'."""
    return ", ".join(f"{short(name)} {value:g}" for name, value in weights(config).items())


def short(name: str) -> str:
    """A weight's name in a list of them."""
    return name.removesuffix("_weight").removeprefix("kd_")
