"""What a notebook does with runs: train arms over seeds, tabulate and plot them.

An arm is a named configuration; its runs differ only in the seed.
"""

from collections.abc import Iterable, Mapping

import pandas as pd
from matplotlib.figure import Figure
from torch import nn
from tqdm import tqdm

from iekd import records
from iekd.config import ConfigError, RunConfig
from iekd.report import comparison, figures, statistics
from iekd.training import runner


def load_student(config: RunConfig) -> nn.Module:
    """The trained network of a run, in eval mode without gradients; trained first if necessary.

    Called with normalised images (B, C, H, W) it returns `Output(logits, features)`.
    """
    runner.train(config, progress=False)
    return runner.load_network(config)


def compare(arms: Mapping[str, RunConfig], seeds: Iterable[int] = range(3)) -> pd.DataFrame:
    """Train or load every arm with every seed: one row per run, as in `iekd.records.load`.

    On a terminal, a progress bar shows how many runs are done.

    Args:
        arms: configurations by name; their own seeds are ignored.
        seeds: the same for every arm, so that differences can be paired.

    Returns:
        The runs, with the arm's name in the column `label` and test errors (percent) in `last`.

    >>> import iekd
    >>> alone = iekd.config("smoke", epochs=1)
    >>> runs = iekd.compare({"alone": alone, "KD": alone.replace(method="kd")}, seeds=range(2))
    >>> len(runs)
    4
    """
    jobs = [(label, arms[label].replace(seed=seed)) for seed in seeds for label in arms]
    rows = []
    for label, config in tqdm(jobs, desc="compare", unit="run", disable=None):
        rows.append(records.as_row(runner.train(config, progress=False)) | {"label": label})
    return pd.DataFrame(rows)


def table(runs: pd.DataFrame, baseline: str, metric: str = "last") -> pd.DataFrame:
    """Mean, spread and interval of every arm, and its difference from the baseline, paired by seed.

    Args:
        runs: as `compare` returns them.
        baseline: the label of the arm that the others are compared with.
        metric: a column of `runs`.

    Returns:
        One row per arm: n, mean, sd, low, high (95 % interval), difference (arm - baseline) with
        its interval, p (Holm-corrected over the arms of this table) and outcome: 'lower' or
        'higher' if p is below 5 %, 'equivalent' if the interval lies within the smallest difference
        of interest, else 'inconclusive'.

    Raises:
        ConfigError: no arm has the baseline's label, or `runs` does not hold runs.
    """
    _check_runs(runs)
    errors = runs.set_index("seed").groupby("label", sort=False)[metric]
    by_arm = {str(label): values for label, values in errors}
    if baseline not in by_arm:
        raise ConfigError(
            f"baseline: there is no arm {baseline!r}; the arms are {', '.join(by_arm)}"
        )
    rivals = [label for label in by_arm if label != baseline]
    results = {label: statistics.paired(by_arm[label], by_arm[baseline]) for label in rivals}
    bound = min(comparison.smallest(preset, metric) for preset in runs["preset"].unique())
    corrected = dict(zip(rivals, statistics.holm(r.p for r in results.values()), strict=True))
    rows = {}
    for label, values in by_arm.items():
        rows[label] = comparison.summarised(values.to_frame(metric), metric)._asdict()
        if label in results:
            result, p = results[label], corrected[label]
            limits = {"difference low": result.low, "difference high": result.high}
            found = {"p": p, "outcome": statistics.outcome(result, p, bound)}
            rows[label] |= {"difference": result.difference, **limits, **found}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("arm")


def plot(runs: pd.DataFrame, baseline: str = "", metric: str = "last") -> Figure:
    """Plot every seed as a point and every arm as a row, with its mean and 95 % interval.

    With a `baseline` (a label): the differences from it, seed by seed.
    """
    _check_runs(runs)
    if baseline:
        return figures.paired_plot(runs, baseline, metric=metric)
    return figures.seeds_plot(runs, metric=metric)


def _check_runs(runs: object) -> None:
    """Refuse arms that have not been trained yet, and other data frames."""
    if not isinstance(runs, pd.DataFrame) or not {"label", "seed"} <= set(runs):
        raise ConfigError(
            "runs: this takes what iekd.compare returns, one row a run with its label and seed"
        )
