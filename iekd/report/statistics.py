"""From seeds to statements: interval, paired difference, correction, power, and conclusion.

All values are test errors in percent unless said otherwise. Seeds are treated as independent, but
runs with seeds k and k + `teachers` (a field of a run) learn from the same teacher, so with more
seeds than teachers the intervals may be too narrow. What holds for these teachers need not hold for
others.
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple, Self

import numpy as np
import pandas as pd
from scipy import stats
from scipy.optimize import brentq

Outcome = Literal["lower", "higher", "equivalent", "inconclusive", ""]

LEVEL, ALPHA = 0.95, 0.05
# Below this, a spread (in percent) is rounding error: test errors come in steps of one image, at
# least 0.01 %.
_NO_SPREAD = 1e-9
# With two values the t-interval is too wide to be informative: none is given.
LEAST = 3


class Summary(NamedTuple):
    """`n` values, their mean, sample standard deviation and 95 % t-interval of the mean."""

    n: int
    mean: float
    sd: float
    low: float
    high: float

    def within(self, least: float, most: float) -> Self:
        """The same, with the interval clipped to possible means: an error lies in 0 to 100."""
        return self._replace(low=max(self.low, least), high=min(self.high, most))


class Paired(NamedTuple):
    """Mean and sd of a - b over the `n` common seeds, 95 % interval, two-sided p of the t-test."""

    n: int
    difference: float
    sd: float
    low: float
    high: float
    p: float


def summary(values: Iterable[float]) -> Summary:
    """Summary of the finite values.

    NaN: the sd of fewer than two, the interval of fewer than three, the mean of none.
    """
    x = np.asarray(list(values), dtype=float)
    x = x[np.isfinite(x)]
    if len(x) < 2:
        return Summary(len(x), float(x[0]) if len(x) else np.nan, np.nan, np.nan, np.nan)
    mean, sd = float(x.mean()), float(x.std(ddof=1))
    if len(x) < LEAST:
        return Summary(len(x), mean, sd, np.nan, np.nan)
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(x) - 1)) * sd / len(x) ** 0.5
    return Summary(len(x), mean, sd, mean - half, mean + half)


def paired(a: pd.Series, b: pd.Series) -> Paired:
    """Paired comparison a - b of two series indexed by seed, on the seeds where both are finite.

    With fewer than two pairs, sd and p are NaN; with fewer than three, so is the interval. Equal
    inputs give difference 0 and p = 1. A constant difference other than 0 has no spread to test
    against: interval and p are then NaN. Raises `ValueError` if a seed occurs twice.
    """
    for index in (a.index, b.index):
        if index.has_duplicates:
            raise ValueError(f"a seed occurs twice: {sorted(index[index.duplicated()])}")
    both = pd.concat([a, b], axis=1, keys=["a", "b"], join="inner").astype(float).dropna()
    difference = both["a"] - both["b"]
    n, mean, sd = len(both), float(difference.mean()), float(difference.std())
    if n < 2:
        return Paired(n, mean, np.nan, np.nan, np.nan, np.nan)
    if sd < _NO_SPREAD:
        same = abs(mean) < _NO_SPREAD
        low, high, p = (0.0, 0.0, 1.0) if same else (np.nan, np.nan, np.nan)
    else:
        test = stats.ttest_rel(both["a"], both["b"])
        (low, high), p = test.confidence_interval(LEVEL), test.pvalue
    if n < LEAST:
        low = high = np.nan
    return Paired(n, mean, sd, float(low), float(high), float(p))


def minus_constant(s: Summary, value: float) -> Paired:
    """A mean minus a number taken as exact, with a two-sided t-test; p is NaN without a spread."""
    difference, known = s.mean - value, s.n > 1 and s.sd > _NO_SPREAD
    p = 2 * float(stats.t.sf(abs(difference) / s.sd * s.n**0.5, s.n - 1)) if known else np.nan
    return Paired(s.n, difference, s.sd, s.low - value, s.high - value, p)


def by_teacher(values: pd.Series, teachers: int) -> pd.Series:
    """One value per teacher, by its seed: the mean over its students, k modulo `teachers`.

    Students of one teacher share its luck. With one pair per student, many students of few teachers
    would look like more evidence than they are, so in comparisons with the teacher, the teacher is
    the unit.
    """
    return values.groupby(values.index % teachers).mean()


def holm(pvalues: Iterable[float]) -> np.ndarray:
    """Holm-corrected p-values in the given order; NaN (not tested) stays NaN and is not counted."""
    p = np.asarray(list(pvalues), dtype=float)
    order = np.argsort(p)[: np.isfinite(p).sum()]  # NaNs are sorted to the end
    corrected = np.full_like(p, np.nan)
    stepwise = p[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(stepwise), 1.0)
    return corrected


def power(effect: float, n: int, alpha: float = ALPHA) -> float:
    """Probability that a two-sided paired t-test on `n` pairs detects an effect of `effect` sds."""
    limit, shift = float(stats.t.isf(alpha / 2, n - 1)), abs(effect) * n**0.5
    return float(stats.nct.sf(limit, n - 1, shift) + stats.nct.sf(limit, n - 1, -shift))


def detectable(n: int, alpha: float = ALPHA, wanted: float = 0.8) -> float:
    """The difference, in standard deviations, that `n` pairs detect with the `wanted` power."""
    return float(brentq(lambda effect: power(effect, n, alpha) - wanted, 1e-6, 1e3))


def pairs_needed(effect: float, alpha: float = ALPHA, wanted: float = 0.8) -> int:
    """The smallest number of pairs that detects a difference of `effect` sds with `wanted` power.

    Raises `ValueError` for an effect of zero, which no number of pairs detects.
    """
    if not abs(effect) > 0:
        way_out = "name the smallest difference of interest"
        raise ValueError(f"an effect of zero is seen with no number of pairs; {way_out}")
    high = 2
    while power(effect, high, alpha) < wanted:
        high *= 2
    return next(n for n in range(max(2, high // 2), high + 1) if power(effect, n, alpha) >= wanted)


def outcome(result: Paired, corrected_p: float, smallest: float = 0.0) -> Outcome:
    """What a comparison a - b shows: the one rule for its word, sign and colour everywhere.

    'lower' or 'higher' (of a): the corrected p is below 5 %; else 'equivalent': the 95 % interval
    lies inside ±`smallest`, the smallest difference of interest; else 'inconclusive', which is a
    result but not a proof of equality. '' for fewer than two pairs.
    """
    if result.n < 2:
        return ""
    if corrected_p < ALPHA:  # false for NaN
        return "lower" if result.difference < 0 else "higher"
    return "equivalent" if max(-result.low, result.high) < smallest else "inconclusive"
