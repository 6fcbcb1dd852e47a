import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from iekd.stats import Paired, holm, paired, summary, verdict


def test_summary_by_hand():
    s = summary([1.0, 2.0, 3.0, np.nan])
    assert (s.n, s.mean, s.sd) == (3, 2.0, 1.0)
    half = 4.302652729911275 / 3**0.5  # t quantile 0.975 with 2 degrees of freedom, from a printed table
    assert (s.low, s.high) == pytest.approx((2 - half, 2 + half))


def test_summary_of_one_and_none():
    one, none = summary([7.0]), summary([])
    assert one.n == 1 and one.mean == 7.0 and np.isnan([one.sd, one.low, one.high]).all()
    assert none.n == 0 and np.isnan(none.mean)
    assert summary([5.0, 5.0])[1:] == (5.0, 0.0, 5.0, 5.0)


def test_paired_uses_common_seeds_only():
    a = pd.Series({0: 1.0, 1: 2.5, 2: 2.0, 7: 99.0, 8: np.nan})
    b = pd.Series({8: 1.0, 2: 4.0, 1: 3.0, 0: 2.5, 9: -99.0})
    result, d = paired(a, b), np.array([-1.5, -0.5, -2.0])
    assert result.n == 3 and result.difference == pytest.approx(d.mean()) and result.sd == pytest.approx(d.std(ddof=1))
    t = d.mean() / (d.std(ddof=1) / 3**0.5)
    assert result.p == pytest.approx(2 * scipy_stats.t.sf(abs(t), 2))
    assert (result.low, result.high) == pytest.approx(summary(d)[3:])


def test_paired_degenerate():
    a = pd.Series({0: 1.0, 1: 2.0})
    assert paired(a, a) == Paired(2, 0.0, 0.0, 0.0, 0.0, 1.0)
    assert np.isnan(paired(a, a + 0.5)[3:]).all()  # no spread: not "certain"
    assert paired(a, pd.Series({5: 1.0})).n == 0
    assert np.isnan(paired(a.loc[:0], a).p)
    with pytest.raises(ValueError, match="twice"):
        paired(pd.concat([a, a]), a)


def test_holm_by_hand():
    assert holm([0.01, np.nan, 0.04, 0.03]) == pytest.approx([0.03, np.nan, 0.06, 0.06], nan_ok=True)
    assert np.isnan(holm([np.nan])).all() and len(holm([])) == 0


@pytest.mark.parametrize(
    ("difference", "n", "p", "word"),
    [
        (-0.3, 5, 0.01, "reproduced"),
        (0.3, 5, 0.01, "not reproduced"),
        (-0.3, 5, 0.05, "not distinguishable"),
        (-0.3, 5, np.nan, "not distinguishable"),
        (-0.3, 1, np.nan, "not tested"),
    ],
)
def test_verdict(difference, n, p, word):
    assert verdict(Paired(n, difference, 0.1, -1.0, 1.0, p), -1, p) == word
