"""Which runs belong to an arm, and which arms to a table."""

import pandas as pd
import pytest
from frames import ALONE, KD, TEACHER, frame, paper_runs

from iekd.config import RunConfig
from iekd.report.arms import decisive, grid_runs, scope
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
    assert list(rows["label"]) == ["KD", "Tf-KD", "Tf-KD, weight 0.3"] and set(rows["scope"]) == {
        "resnet20-resnet8"
    }


def test_scope_finds_teacher_and_student_alone(runs):
    other = frame("paper", (KD, {0: 1.0}), teacher="wrn40_1")
    rows = scope(pd.concat([runs, other]), "paper")
    assert len(rows) == len(runs) and (rows["role"] == "teacher").sum() == 3
    small = frame(
        "class", (TEACHER, {0: 20.0}), (ALONE, {0: 40.0}), (KD, {0: 39.0})
    )  # the teacher has its own epochs
    assert list(scope(small, "class")["label"]) == ["Teacher", "Student alone", "KD"]


def test_a_grid_s_students_alone_are_found_however_they_are_trained():
    """They were looked for as the preset trains them: "no runs yet" stood in the table."""
    longer = {"epochs": 20, "lr": 0.05}
    runs = frame(
        "class",
        (ALONE, {0: 1.0}),
        ({**ALONE, **longer}, {0: 40.0, 1: 41.0}),
        ({**KD, **longer}, {0: 39.0, 1: 38.0}),
    )
    configs = [RunConfig.create("class", **arm, **longer) for arm in (ALONE, KD)]
    found = grid_runs(runs, configs)
    assert list(found["last"]) == [40.0, 41.0, 39.0, 38.0] and set(found["role"]) == {"student"}
    assert list(found["label"])[::2] == [
        "Student alone, epochs 20, lr 0.05",
        "KD, epochs 20, lr 0.05",
    ]
    assert list(grid_runs(runs, [configs[1]])["last"]) == [39.0, 38.0]
    only = grid_runs(runs, [configs[0], configs[0].replace(epochs=15, lr=0.1)])
    assert sorted(only["last"]) == [1.0, 40.0, 41.0]
