import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from iekd.report import statistics
from iekd.report.statistics import Paired, holm, outcome, paired, summary


def test_summary_by_hand():
    s = summary([1.0, 2.0, 3.0, np.nan])
    assert (s.n, s.mean, s.sd) == (3, 2.0, 1.0)
    half = (
        4.302652729911275 / 3**0.5
    )  # t quantile 0.975 with 2 degrees of freedom, from a printed table
    assert (s.low, s.high) == pytest.approx((2 - half, 2 + half))


def test_summary_of_one_and_none():
    one, none = summary([7.0]), summary([])
    assert one.n == 1 and one.mean == 7.0 and np.isnan([one.sd, one.low, one.high]).all()
    assert none.n == 0 and np.isnan(none.mean)
    assert summary([5.0, 5.0, 5.0])[1:] == (5.0, 0.0, 5.0, 5.0)


def test_two_values_have_no_interval():
    two = summary([5.0, 6.0])
    assert two.mean == 5.5 and two.sd > 0 and np.isnan([two.low, two.high]).all()
    a, b = pd.Series({0: 1.0, 1: 2.5}), pd.Series({0: 2.0, 1: 3.0})
    result = paired(a, b)
    assert result.n == 2 and np.isnan([result.low, result.high]).all() and result.p < 1
    assert outcome(result, result.p, 10.0) == "inconclusive"  # two pairs cannot be equivalent


def test_paired_uses_common_seeds_only():
    a = pd.Series({0: 1.0, 1: 2.5, 2: 2.0, 7: 99.0, 8: np.nan})
    b = pd.Series({8: 1.0, 2: 4.0, 1: 3.0, 0: 2.5, 9: -99.0})
    result, d = paired(a, b), np.array([-1.5, -0.5, -2.0])
    assert (
        result.n == 3
        and result.difference == pytest.approx(d.mean())
        and result.sd == pytest.approx(d.std(ddof=1))
    )
    t = d.mean() / (d.std(ddof=1) / 3**0.5)
    assert result.p == pytest.approx(2 * scipy_stats.t.sf(abs(t), 2))
    assert (result.low, result.high) == pytest.approx(summary(d)[3:])


def test_paired_degenerate():
    a, three = pd.Series({0: 1.0, 1: 2.0}), pd.Series({0: 1.0, 1: 2.0, 2: 4.0})
    assert paired(three, three) == Paired(3, 0.0, 0.0, 0.0, 0.0, 1.0)
    assert np.isnan(paired(a, a)[3:5]).all() and paired(a, a).p == 1.0
    assert np.isnan(paired(a, a + 0.5)[3:]).all()  # no spread: not "certain"
    assert paired(a, pd.Series({5: 1.0})).n == 0
    assert np.isnan(paired(a.loc[:0], a).p)
    with pytest.raises(ValueError, match="twice"):
        paired(pd.concat([a, a]), a)


def test_holm_by_hand():
    assert holm([0.01, np.nan, 0.04, 0.03]) == pytest.approx(
        [0.03, np.nan, 0.06, 0.06], nan_ok=True
    )
    assert np.isnan(holm([np.nan])).all() and len(holm([])) == 0


def test_holm_never_decreases_along_the_order_and_stays_below_one():
    assert holm([0.02, 0.02, 0.9, 0.001]) == pytest.approx([0.06, 0.06, 0.9, 0.004])
    assert holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])
    # by statsmodels 0.15.0, multipletests(method="holm")
    p = [0.049, 0.012, 0.031, 0.2, 0.0004]
    assert holm(p) == pytest.approx([0.098, 0.048, 0.093, 0.2, 0.002])


# by statsmodels 0.15.0, TTestPower().power(effect, n, alpha)
POWERS = [
    (0.5, 10, 0.05, 0.2931757),
    (0.5, 20, 0.05, 0.5645044),
    (0.3, 8, 0.0125, 0.0353124),
    (1.5, 5, 0.05, 0.7107027),
    (0.0, 9, 0.05, 0.05),
]


@pytest.mark.parametrize(("effect", "n", "alpha", "expected"), POWERS)
def test_power(effect, n, alpha, expected):
    assert statistics.power(effect, n, alpha) == pytest.approx(expected, abs=1e-6)
    assert statistics.power(-effect, n, alpha) == pytest.approx(expected, abs=1e-6)


def test_what_is_detectable_and_how_many_pairs_that_needs():
    for n in (2, 5, 20):
        effect = statistics.detectable(n, 0.05, 0.8)
        assert statistics.power(effect, n) == pytest.approx(0.8)
        assert (
            statistics.pairs_needed(1.001 * effect) == n
            and statistics.pairs_needed(0.99 * effect) == n + 1
        )
    with pytest.raises(ValueError, match="smallest difference of interest"):
        statistics.pairs_needed(0.0)


def test_minus_constant():
    x = np.array([6.5, 6.52, 6.48, 6.6])
    result = statistics.minus_constant(summary(x), 6.37)
    test = scipy_stats.ttest_1samp(x, 6.37)
    limits = test.confidence_interval(0.95)
    assert result.difference == pytest.approx(x.mean() - 6.37) and result.p == pytest.approx(
        test.pvalue
    )
    assert (result.low, result.high) == pytest.approx((limits.low - 6.37, limits.high - 6.37))
    assert np.isnan(statistics.minus_constant(summary([6.5]), 6.37).p) and np.isnan(
        statistics.minus_constant(summary([6.5, 6.5]), 6.37).p
    )


def test_against_the_teacher_the_teacher_is_the_unit():
    """Twenty students of five equal teachers: a pair a student errs four times too often."""
    rng = np.random.default_rng(0)
    seeds, repeats, naive, by_unit = pd.Index(range(100, 120)), 600, 0, 0
    for _ in range(repeats):
        teachers, students = (
            pd.Series(rng.standard_normal(5)),
            pd.Series(rng.standard_normal(20), index=seeds),
        )
        naive += scipy_stats.ttest_1samp(students - teachers[seeds % 5].to_numpy(), 0).pvalue < 0.05
        by_unit += paired(statistics.by_teacher(students, 5), teachers).p < 0.05
    assert 0.18 < naive / repeats < 0.28 and 0.03 < by_unit / repeats < 0.07


@pytest.mark.parametrize(
    ("difference", "n", "p", "word"),
    [
        (-0.3, 5, 0.01, "lower"),
        (0.3, 5, 0.01, "higher"),
        (-0.3, 5, 0.05, "inconclusive"),
        (-0.3, 5, np.nan, "inconclusive"),
        (-0.3, 1, np.nan, ""),
    ],
)
def test_the_corrected_p_decides(difference, n, p, word):
    assert outcome(Paired(n, difference, 0.1, -1.0, 1.0, 0.001), p) == word
    assert outcome(Paired(n, difference, 0.1, -0.4, 0.4, 0.001), p, 0.5) == word.replace(
        "inconclusive", "equivalent"
    )
    assert outcome(Paired(n, difference, 0.1, -0.6, 0.4, 0.001), p, 0.5) == word
