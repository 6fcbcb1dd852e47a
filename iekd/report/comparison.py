"""Arms and their differences as frames, one row per arm: errors in percent."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from iekd.report.arms import ARM, by_variant
from iekd.report.claims import SMALLEST
from iekd.report.labels import label
from iekd.report.statistics import Summary, holm, outcome, paired, summary

METRICS = {
    "last": "Test error after the last epoch",
    "val_selected": "Test error at the epoch selected on validation images",
    "best_on_test": "Lowest test error of the evaluated epochs (biased: selected on test images)",
    "last_exact": "Test error after the last epoch, on test images that were not recompressed",
    "cka_halves": "CKA between the two halves of the student's feature",
    "rise_train": "Rise in the training loss under weight noise",
    "explore_lost": "Score lost by the exploring half minus the inheriting half",
    "explore_agrees": "Agreement with the teacher's map, exploring minus inheriting half",
    "active_all": "Active neurons",
}
# Metrics with a smallest difference of interest.
ERRORS = ("last", "val_selected", "best_on_test", "last_exact")


def summarised(runs: pd.DataFrame, metric: str = "last") -> Summary:
    """The summary of a metric over runs; the interval of an error stays within 0 to 100 %."""
    found = summary(runs[metric])
    return found.within(0.0, 100.0) if metric in ERRORS else found


def arms(frame: pd.DataFrame, metric: str = "last") -> pd.DataFrame:
    """One row per arm, as they appear: n, mean, sd, 95 % interval (low, high) of the metric."""
    context = [c for c in ("role", "scope") if c in frame]
    rows = []
    for _, runs in frame.groupby([*context, *ARM], sort=False):
        first = runs.iloc[0].to_dict()
        named = {name: first[name] for name in [*ARM, "method", *context]}
        rows.append({**named, "label": label(first), **summarised(runs, metric)._asdict()})
    return pd.DataFrame(rows)


def summary_of(row: Mapping[str, Any]) -> Summary:
    """The summary that a row of `arms` holds."""
    return Summary(*(row[name] for name in Summary._fields))


def comparison(
    frame: pd.DataFrame, baseline: str = "supervised", metric: str = "last"
) -> pd.DataFrame:
    """`arms` of one scope, each with its difference from the arm of variant `baseline`, by seed.

    Adds pairs, difference, difference_low, difference_high, p, p_holm (corrected over the arms of
    this table), outcome (`statistics.outcome` by p_holm) and baseline (is this arm the baseline?).
    Raises `KeyError` if the baseline has no runs.
    """
    errors = by_variant(frame, metric)
    if baseline not in errors:
        there = ", ".join(errors) or "none at all"
        raise KeyError(f"baseline {baseline!r} has no runs; there are {there}")
    table = arms(frame, metric)
    student = table["role"] == "student"
    table["baseline"] = student & (table["variant"] == baseline)

    # the teacher and the baseline itself are not compared
    compared = table["variant"].where(student & ~table["baseline"])
    nothing = pd.Series(dtype=float)
    results = [paired(errors.get(variant, nothing), errors[baseline]) for variant in compared]
    found = pd.DataFrame(results, index=table.index).drop(columns="sd")
    names = {"n": "pairs", "low": "difference_low", "high": "difference_high"}
    table = table.join(found.rename(columns=names))

    # one rule decides, by the corrected p
    table["p_holm"] = holm(table["p"])
    bounds = [smallest(preset, metric) for preset in table["preset"]]
    table["outcome"] = list(map(outcome, results, table["p_holm"], bounds))
    return table


def smallest(preset: str, metric: str = "last") -> float:
    """The smallest difference of interest; 0 for a metric other than an error."""
    return SMALLEST[preset] if metric in ERRORS else 0.0
