import numpy as np
import pandas as pd
import pytest
from frames import ALONE, FT, IE, KD, errors, frame, paper_runs

from iekd.report import comparison, phrases, readme, tables
from iekd.report.arms import scope
from iekd.report.paper import paper_value


@pytest.fixture
def runs():
    return paper_runs()


def test_comparison_pairs_on_common_seeds(runs):
    table = comparison.comparison(scope(runs, "paper")).set_index("label")
    kd = table.loc["KD"]
    assert (kd["n"], kd["pairs"]) == (4, 3)
    assert kd["difference"] == pytest.approx(np.mean([7.4 - 7.8, 7.5 - 7.9, 7.1 - 7.6]))
    assert table.loc["IE-FT", "outcome"] == "lower" and table.loc["Teacher", "outcome"] == ""
    assert table["outcome"].iloc[-1] == "equivalent" and table.loc["FT", "outcome"] == ""
    assert table.loc["FT", "pairs"] == 1 and np.isnan(table.loc["FT", "p_holm"])
    assert (table["p_holm"].dropna() >= table["p"].dropna()).all()


def test_the_interval_of_an_error_stays_within_0_and_100():
    high, low = (frame("smoke", (KD, errors(*values))) for values in ((99, 70, 98), (0, 9, 1)))
    for runs in (high, low):
        assert (comparison.arms(runs)[["low", "high"]].to_numpy() >= 0).all()
        assert (comparison.arms(runs)[["low", "high"]].to_numpy() <= 100).all()
    change = low.assign(rise_train=low["last"] / 10)  # no error: it may be anything
    assert comparison.summarised(change, "rise_train").low < 0
    two = comparison.summarised(frame("smoke", (KD, errors(5.0, 6.0))))
    assert np.isnan([two.low, two.high]).all()


def test_the_corrected_p_decides_and_not_the_interval():
    alone = {k: 40 + 0.1 * k for k in range(5)}
    near = {k: v - 0.6 + 0.3 * (-1) ** k for k, v in alone.items()}  # its interval excludes zero
    others = [
        ({"method": m}, {k: v + i + (-1) ** k for k, v in alone.items()})
        for i, m in enumerate(("at", "od", "sp", "cc"))
    ]
    table = comparison.comparison(
        scope(frame("class", (ALONE, alone), (KD, near), *others), "class")
    ).set_index("label")
    kd = table.loc["KD"]
    assert (
        kd["difference_high"] < 0
        and kd["p"] < 0.05 < kd["p_holm"]
        and kd["outcome"] == "inconclusive"
    )
    assert tables.difference_lines(kd)[0] == "−0.54 ≈ inconclusive"


def test_runs_far_from_their_arm_are_named():
    rng = np.random.default_rng(0)
    values = {k: 32 + 0.4 * rng.standard_normal() for k in range(100, 120)}
    usual = scope(frame("class", (IE, values), (FT, values)), "class")
    assert phrases.outliers(usual) == ""
    strange = scope(frame("class", (IE, values), (FT, {**values, 103: 39.1})), "class")
    found = phrases.outliers(strange)
    assert "FT, seed 103: 39.10 (median of the arm: 3" in found and "IE-FT" not in found
    few = scope(frame("class", (FT, {0: 32.0, 1: 32.1, 2: 39.1})), "class")
    assert phrases.outliers(few) == ""


def test_paper_value_only_where_everything_matches(runs):
    values = {row["label"]: paper_value(row) for row in scope(runs, "paper").to_dict("records")}
    assert values["IE-FT"] == 6.37 and values["Teacher"] == 6.39
    assert np.isnan(values["IE-FT (inherit L1, explore CKA)"])  # not in the paper's table
    same_pair = frame(
        "class", (ALONE, errors(1, 2)), (KD, errors(1, 2)), teacher="resnet56", student="resnet20"
    )
    small = scope(same_pair, "class", teacher="resnet56", student="resnet20")
    values = [paper_value(row) for row in small.to_dict("records")]
    assert len(values) == 4 and np.isnan(values).all()  # another recipe on other images


def test_missing_baseline_is_named(runs):
    with pytest.raises(KeyError, match="supervised.*kd"):
        comparison.comparison(scope(runs[runs["method"] != "supervised"], "paper"))


def test_two_pairs_stand_below_one_another(runs):
    setting = dict(teacher="wrn40_1")
    other = frame("paper", (ALONE, errors(7, 8)), (FT, errors(6, 7.5)), **setting)
    table = comparison.arms(pd.concat([runs, other]))
    lines = readme.markdown(table).splitlines()
    assert len(lines) == 2 + len(table) and all(line.count("|") == 7 for line in lines)
