"""The choice of a method's weights: of a small grid, the one with the lowest validation error. Test errors play no part in it.

The grid (runs/tuning.yaml) gives every method the same budget: its usual weights times 0.3, 1 and 3, one pilot seed.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from iekd.arms import method_name
from iekd.config import METHOD_FIELDS, RunConfig


def weights(config: RunConfig) -> dict[str, float]:
    """The weights of a run's losses by name, as far as its method reads them."""
    return {name: getattr(config, name) for name in METHOD_FIELDS[config.method] if name.endswith("_weight") or name == "kd_alpha"}


def search(frame: pd.DataFrame, configs: Sequence[RunConfig]) -> pd.DataFrame:
    """One row per run of the grid, methods in its order: method, label, weights (text), error (validation images, last epoch, percent;
    NaN without a record), usual (nothing differs from the preset), chosen, edge (chosen, and the grid ends there), path.

    Chosen is the lowest error, the usual weight among equals. A method with a run that is missing has no choice yet.
    """
    errors = frame.set_index("path")["last_validation"] if len(frame) else pd.Series(dtype=float)
    rows = [
        {
            "method": c.method, "label": method_name(c.method), "weights": _text(c), "error": errors.get(c.path, float("nan")),
            "usual": not c.changed(), "path": c.path,
        }
        for c in configs
    ]  # fmt: skip
    table = pd.DataFrame(rows)
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
    return ", ".join(f"{name.removesuffix('_weight').removeprefix('kd_')} {value:g}" for name, value in weights(config).items())
