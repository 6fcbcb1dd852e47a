"""Arms are called what a person calls them, from their configuration."""

import pytest
from frames import frame

from iekd.report import comparison, labels
from iekd.report.arms import scope
from iekd.report.paper import paper_name, paper_table, paper_value

TEACHER, ALONE, KD, FT = (
    {"role": "teacher"},
    {"method": "supervised"},
    {"method": "kd"},
    {"method": "ft"},
)
IE = {"method": "ie-ft"}


def errors(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


@pytest.fixture
def runs():
    return frame(
        "paper",
        (TEACHER, errors(6.4, 6.5, 6.3)),
        (ALONE, errors(7.8, 7.7, 7.9, 7.6)),
        (KD, {0: 7.4, 2: 7.5, 3: 7.1, 9: 1.0}),  # seed 1 is missing, seed 9 has no partner
        (FT, {0: 6.9}),
        (IE, errors(6.6, 6.6, 6.7, 6.3)),
        ({**IE, "explore": "cka"}, errors(7.9, 7.6, 7.9, 7.65)),
    )


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
