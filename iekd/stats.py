"""From seeds to statements: mean and interval of one arm, paired difference of two, correction, verdict.

All values are test errors in percent unless said otherwise. Seeds are treated as independent; yet the runs with seeds k
and k + `teachers` (a field of the configuration) learn from the same teacher, so with more seeds than teachers the
intervals may be too narrow. What holds for these teachers need not hold for others.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests

Verdict = Literal["reproduced", "not reproduced", "not distinguishable", "open", "not tested"]

LEVEL = 0.95
# Below this, a spread (in percent) is rounding: test errors come in steps of one image, 0.01 % at the finest.
_NO_SPREAD = 1e-9


class Summary(NamedTuple):
    """`n` values, their mean, sample standard deviation and 95 % t-interval of the mean."""

    n: int
    mean: float
    sd: float
    low: float
    high: float


class Paired(NamedTuple):
    """Mean and sd of a - b over the `n` common seeds, its 95 % interval, two-sided p of the paired t-test."""

    n: int
    difference: float
    sd: float
    low: float
    high: float
    p: float


def summary(values: Iterable[float]) -> Summary:
    """Summary of the finite values; sd and interval are NaN for fewer than two, the mean too for none."""
    x = np.asarray(list(values), dtype=float)
    x = x[np.isfinite(x)]
    if len(x) < 2:
        return Summary(len(x), float(x[0]) if len(x) else np.nan, np.nan, np.nan, np.nan)
    mean, sd = float(x.mean()), float(x.std(ddof=1))
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(x) - 1)) * sd / len(x) ** 0.5
    return Summary(len(x), mean, sd, mean - half, mean + half)


def paired(a: pd.Series, b: pd.Series) -> Paired:
    """Paired comparison a - b of two series indexed by seed, on the seeds where both are finite.

    With fewer than two pairs sd, interval and p are NaN. Equal inputs give difference 0 and p = 1. A constant
    difference other than 0 has no spread to test against (coarse errors, few seeds): interval and p are then NaN.

    Raises `ValueError` if a seed occurs twice.
    """
    for series in (a, b):
        if series.index.has_duplicates:
            raise ValueError(f"a seed occurs twice: {sorted(series.index[series.index.duplicated()])}")
    both = pd.concat([a, b], axis=1, keys=["a", "b"], join="inner").astype(float).dropna()
    difference = both["a"] - both["b"]
    n, mean, sd = len(both), float(difference.mean()), float(difference.std())
    if n < 2:
        return Paired(n, mean, np.nan, np.nan, np.nan, np.nan)
    if sd < _NO_SPREAD:
        same = abs(mean) < _NO_SPREAD
        return Paired(n, mean, 0.0, *([0.0, 0.0, 1.0] if same else [np.nan] * 3))
    test = stats.ttest_rel(both["a"], both["b"])
    interval = test.confidence_interval(LEVEL)
    return Paired(n, mean, sd, float(interval.low), float(interval.high), float(test.pvalue))


def holm(pvalues: Iterable[float]) -> np.ndarray:
    """Holm-corrected p-values in the order given; NaN (nothing tested) stays NaN and does not count as a comparison."""
    p = np.asarray(list(pvalues), dtype=float)
    corrected, tested = np.full_like(p, np.nan), np.isfinite(p)
    if tested.any():
        corrected[tested] = multipletests(p[tested], method="holm")[1]
    return corrected


def verdict(result: Paired, direction: int, corrected_p: float, alpha: float = 0.05) -> Verdict:
    """The word for a claim that a - b has the sign `direction` (-1: a has the lower error).

    reproduced: corrected p < alpha and the sign as claimed; not reproduced: corrected p < alpha and the opposite sign;
    not distinguishable: neither, which is a result and no proof of equality; not tested: fewer than two pairs. (A verdict
    is "open" while planned seeds are missing: `iekd.verdicts` knows.)
    """
    if result.n < 2:
        return "not tested"
    if not corrected_p < alpha:  # also NaN
        return "not distinguishable"
    return "reproduced" if result.difference * direction > 0 else "not reproduced"
