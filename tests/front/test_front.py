"""The front door: what `import iekd` offers does what its docstring says."""

import doctest
import importlib
import inspect
import pydoc
import subprocess
import sys

import pandas as pd
import pytest
from tiny import tiny

import iekd
from iekd import front


@pytest.mark.parametrize("module", ["iekd.front", "iekd.config.run", "iekd.method.check"])
def test_the_examples_of_the_docstrings_run(module):
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted > 0 and result.failed == 0


@pytest.mark.parametrize("name", iekd.__all__)
def test_every_name_is_there_and_explained(name):
    thing = getattr(iekd, name)
    assert name == "__version__" or len(inspect.getdoc(thing)) > 30


def test_a_name_can_be_completed_and_a_room_that_is_called_says_how():
    """Tab in Jupyter asks `dir`; `help` and `?` ask docstring and signature."""
    assert set(iekd.__all__) <= set(dir(iekd))
    for room, argument in {"method": "taught", "config": "preset"}.items():
        called = getattr(iekd, room)
        assert argument in inspect.signature(called).parameters
        assert f"iekd.{room}(" in pydoc.render_doc(called)
    assert "reads:" in pydoc.render_doc(iekd.method)


def test_arms_that_were_not_trained_are_no_runs():
    arms = {"alone": tiny()}
    for show in (iekd.table, iekd.plot):
        with pytest.raises(iekd.ConfigError, match="what iekd.compare returns"):
            show(arms, baseline="alone")


def test_the_door_opens_at_once():
    """Nothing heavy is imported before it is used."""
    code = (
        "import sys, iekd; iekd.config; print([m for m in ('torch', 'pandas') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_rooms_are_modules_and_can_be_called():
    from iekd.config import grid

    assert iekd.config("smoke", method="kd").method == "kd"
    assert grid.__name__ == "iekd.config.grid" and iekd.config.grid is grid
    with pytest.raises(AttributeError, match="no attribute 'confg'"):
        iekd.confg  # noqa: B018


def test_modules_of_a_room_are_imported_on_first_use():
    code = (
        "import sys, iekd; from iekd import report; print('iekd.report.labels' in sys.modules); "
        "print(report.labels.__name__, iekd.training.loop.__name__, iekd.data.augment.__name__)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == [
        "False",
        *("iekd.report.labels", "iekd.training.loop", "iekd.data.augment"),
    ]
    with pytest.raises(AttributeError, match="'iekd.report' has no attribute 'figurs'"):
        iekd.report.figurs  # noqa: B018


def test_arms_are_compared_over_seeds():
    arms = {"alone": tiny(), "KD": tiny("kd")}
    runs = iekd.compare(arms, seeds=range(2))
    assert runs[["label", "seed"]].values.tolist() == [
        ["alone", 0],
        ["KD", 0],
        ["alone", 1],
        ["KD", 1],
    ]
    table = iekd.table(runs, baseline="alone")
    by_seed = runs.pivot(index="seed", columns="label", values="last")
    assert table.loc["KD", "difference"] == pytest.approx((by_seed["KD"] - by_seed["alone"]).mean())
    assert table.loc["KD", "n"] == 2 and table["outcome"].isna().tolist() == [True, False]
    assert iekd.plot(runs).axes and iekd.plot(runs, "alone").axes
    with pytest.raises(iekd.ConfigError, match="there is no arm 'Alone'; the arms are alone, KD"):
        iekd.table(runs, baseline="Alone")


def test_a_student_is_trained_if_it_has_to_be():
    student = iekd.load_student(tiny())
    assert not student.training and front.load_student(tiny()) is not student


def test_the_interval_of_an_error_stays_within_what_an_error_can_be():
    rows = [
        {"seed": k, "preset": "smoke", "label": "A", "last": e} for k, e in enumerate((0, 1, 30))
    ]
    rows += [{**row, "label": "B", "last": 100 - row["last"]} for row in rows]
    found = front.table(pd.DataFrame(rows), baseline="A")
    assert found.loc["A", "low"] == 0 and found.loc["B", "high"] == 100
    assert 0 < found.loc["A", "high"] < 100
