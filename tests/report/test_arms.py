"""Which runs belong to an arm, and which arms to a table."""

import pandas as pd
import pytest
from frames import ALONE, KD, TEACHER, frame, paper_runs

from iekd.config import RunConfig
from iekd.report.arms import decisive, scope
from iekd.report.phrases import phase


def test_confirmatory_seeds_decide_as_soon_as_every_arm_has_two():
    configs = [RunConfig.create("class", method=m) for m in ("kd", "ft")]
    early = [({"method": m}, {0: 30.0, 1: 31.0, 100: 32.0, 101: 33.0}) for m in ("kd",)]
    partly = frame("class", *early, ({"method": "ft"}, {0: 30.0, 1: 31.0, 100: 32.0}))
    assert set(decisive(partly, configs)["seed"]) == {0, 1}
    enough = frame(
        "class",
        *early,
        ({"method": "ft"}, {0: 30.0, 100: 32.0, 101: 31.0}),
        ({"method": "at"}, {100: 1.0}),
    )
    late = decisive(enough, configs)
    assert set(late["seed"]) == {100, 101} and set(late["method"]) == {"kd", "ft"}
    assert "4 confirmatory runs (seeds 100 to 101)" in phase(late)
    assert "pilot" in phase(decisive(partly, configs))
    assert phase(partly.iloc[:0]) == "There are no runs yet."


@pytest.fixture
def runs():
    return paper_runs()


def test_scope_finds_tf_kd_though_it_has_no_teacher():
    runs = frame(
        "class",
        (KD, {0: 39.0}),
        ({"method": "tf-kd"}, {0: 39.5}),
        ({"method": "tf-kd", "tfkd_weight": 0.3}, {0: 38.0}),
    )
    other = frame("class", ({"method": "tf-kd"}, {0: 1.0}), student="resnet14")
    rows = scope(pd.concat([runs, other]), "class", teacher="resnet20", student="resnet8")
    assert list(rows["label"]) == ["KD", "Tf-KD", "Tf-KD, tfkd weight 0.3"] and set(
        rows["scope"]
    ) == {"resnet20-resnet8"}


def test_scope_finds_teacher_and_student_alone(runs):
    other = frame("paper", (KD, {0: 1.0}), teacher="wrn40_1")
    rows = scope(pd.concat([runs, other]), "paper")
    assert len(rows) == len(runs) and (rows["role"] == "teacher").sum() == 3
    small = frame(
        "class", (TEACHER, {0: 20.0}), (ALONE, {0: 40.0}), (KD, {0: 39.0})
    )  # the teacher has its own epochs
    assert list(scope(small, "class")["label"]) == ["Teacher", "Student alone", "KD"]
