"""Weights are chosen by validation error alone, and the comparison of all methods uses what was chosen."""

from __future__ import annotations

from pathlib import Path

import pytest
from frames import frame

from iekd import grid, records, tuning
from iekd.config import RunConfig

ROOT = Path(__file__).parents[1]


def runs(*validation: float, test: float = 50.0):
    """Three AT runs of weights 300, 1000 (usual) and 3000 with these validation errors, and their configurations."""
    fields = [{"method": "at", "at_weight": w} for w in (300.0, 1000.0, 3000.0)]
    found = frame("class", *[(f, {0: test - 10 * i}) for i, f in enumerate(fields)])
    return found.assign(last_validation=validation), [RunConfig.create("class", **f) for f in fields]


@pytest.mark.parametrize(
    ("errors", "weight", "edge"),
    [((30, 31, 32), 300, True), ((31, 30, 32), 1000, False), ((32, 31, 30), 3000, True), ((30, 30, 30), 1000, False)],
)
def test_the_lowest_validation_error_is_chosen_and_the_usual_weight_among_equals(errors, weight, edge):
    found, configs = runs(*errors)  # the test error falls with the weight
    assert tuning.chosen(found, configs)["at"].at_weight == weight
    table = tuning.search(found, configs)
    assert table["chosen"].sum() == 1 and table["edge"].any() == edge
    assert list(table["usual"]) == [False, True, False] and list(table["weights"]) == ["at 300", "at 1000", "at 3000"]


def test_a_search_that_is_not_finished_chooses_nothing():
    found, configs = runs(30, 31, 32)
    assert tuning.chosen(found.iloc[1:], configs) == {}
    assert tuning.chosen(found.iloc[:0], configs) == {}


def test_the_comparison_of_all_methods_holds_what_the_records_choose():
    planned = grid.read(ROOT / "runs/tuning.yaml")
    chosen = tuning.chosen(records.load(ROOT / "runs/records", preset="class"), planned)
    assert set(chosen) == {c.method for c in planned}  # the search is complete
    compared = grid.read(ROOT / "runs/methods.yaml")
    assert {c.variant for c in chosen.values()} <= {c.variant for c in compared}
    assert {c.method for c in compared} == {"supervised", *chosen}
    assert not {c.seed for c in compared} & {c.seed for c in planned}


def test_every_method_has_the_same_budget_around_its_usual_weight():
    table = tuning.search(records.load(ROOT / "runs/records", preset="class"), grid.read(ROOT / "runs/tuning.yaml"))
    assert (table.groupby("method").size() == 3).all() and (table.groupby("method")["usual"].sum() == 1).all()
