"""Arms are called what a person calls them, from their configuration."""

import pytest
from frames import IE, frame, paper_runs

from iekd.config import RunConfig
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


def test_what_all_arms_of_a_table_share_is_no_part_of_their_names():
    """A teacher's settings count if those agree that have a teacher; one arm alone shares nothing."""
    common = {"epochs": 9, "lr": 0.04}
    alone = RunConfig.create("class", method="supervised", **common)
    taught = [
        RunConfig.create("class", method=method, teacher_epochs=9, **common, **more)
        for method, more in (("ft", {}), ("ie-ft", {"explore": "none"}), ("ie-ft", {}))
    ]
    found = labels.names_of([alone, alone.replace(seed=1), *taught])
    assert list(found.values()) == ["Student alone", "FT", "inheritance only (L1)", "IE-FT"]
    said = labels.settings(labels.shared([alone, *taught]))
    assert sorted(said) == ["epochs 9", "lr 0.04", "teacher epochs 9"]

    # What one arm has otherwise, or does not say, stays in the names.
    other = taught[0].replace(lr=0.05, teacher_epochs=8)
    assert labels.shared([alone, *taught, other]) == {"epochs": "9"}
    assert labels.names_of([*taught, other])[other.variant] == "FT, lr 0.05, teacher epochs 8"
    weights = [each.replace(inherit_weight=5.0) for each in taught[1:]]
    assert "IE-FT, inherit weight 5" in labels.names_of([alone, *weights]).values()
    assert list(labels.names_of([alone]).values()) == ["Student alone, epochs 9, lr 0.04"]


def test_labels_are_the_papers_names():
    paper = set(paper_table().index)
    for method in ("kd", "at", "od", "tf-kd", "fitnet", "ab", "ie-at", "ie-od"):
        row = scope(frame("paper", ({"method": method}, {0: 7.0})), "paper").iloc[0]
        assert row["label"] == paper_name(row) and row["label"] in paper and paper_value(row) > 0
