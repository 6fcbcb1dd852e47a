"""Arms are called what a person calls them, from their configuration."""

import pytest
from frames import IE, frame, paper_runs

from iekd.report import comparison, labels
from iekd.report.arms import scope
from iekd.report.paper import paper_name, paper_table, paper_value


@pytest.fixture
def runs():
    return paper_runs()


def test_labels(runs):
    def name(**fields):
        return labels.label(frame("paper", ({**IE, **fields}, {0: 1.0})).iloc[0])

    assert name() == "IE-FT"
    assert name(explore="none") == "inheritance only (L1)"
    assert name(inherit="none", explore="partial-l2") == "exploration only (partial L2)"
    assert name(inherit="partial-l2", explore="cka") == "IE-FT (inherit partial L2, explore CKA)"
    assert name(explore="cka", explore_weight=5.0, split="halves").endswith(
        ", explore weight 5, split halves"
    )
    assert set(comparison.arms(scope(runs, "paper"))["label"]) >= {
        "Student alone",
        "KD",
        "FT",
        "IE-FT",
    }
    assert "Trained alone" in set(
        comparison.arms(runs)["label"]
    )  # a student or a teacher: who knows


def test_labels_are_the_papers_names():
    paper = set(paper_table().index)
    for method in ("kd", "at", "od", "tf-kd", "fitnet", "ab", "ie-at", "ie-od"):
        row = scope(frame("paper", ({"method": method}, {0: 7.0})), "paper").iloc[0]
        assert row["label"] == paper_name(row) and row["label"] in paper and paper_value(row) > 0
