"""Weights are chosen by validation error alone, and the comparison uses what was chosen."""

from pathlib import Path

import pytest
import torch
from frames import frame

from iekd import records
from iekd.baselines.ab import boundary_squares
from iekd.config import RunConfig, grid
from iekd.method import measures
from iekd.method.attention_transfer import attention_contrast, attention_distance
from iekd.method.overhaul import partial_squares
from iekd.report import tuning

ROOT = Path(__file__).parents[2]


def runs(*validation: float, test: float = 50.0):
    """Three AT runs of weights 300, 1000 (usual) and 3000, and their configurations."""
    fields = [{"method": "at", "at_weight": w} for w in (300.0, 1000.0, 3000.0)]
    found = frame("class", *[(f, {0: test - 10 * i}) for i, f in enumerate(fields)])
    return found.assign(last_validation=validation), [
        RunConfig.create("class", **f) for f in fields
    ]


@pytest.mark.parametrize(
    ("errors", "weight", "edge"),
    [
        ((30, 31, 32), 300, True),
        ((31, 30, 32), 1000, False),
        ((32, 31, 30), 3000, True),
        ((30, 30, 30), 1000, False),
    ],
)
def test_the_lowest_validation_error_is_chosen_and_the_usual_weight_among_equals(
    errors, weight, edge
):
    found, configs = runs(*errors)  # the test error falls with the weight
    assert tuning.chosen(found, configs)["at"].at_weight == weight
    table = tuning.search(found, configs)
    assert table["chosen"].sum() == 1 and table["edge"].any() == edge
    assert list(table["usual"]) == [False, True, False] and list(table["weights"]) == [
        "at 300",
        "at 1000",
        "at 3000",
    ]


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
    table = tuning.search(
        records.load(ROOT / "runs/records", preset="class"), grid.read(ROOT / "runs/tuning.yaml")
    )
    assert (table.groupby("method").size() == 3).all() and (
        table.groupby("method")["usual"].sum() == 1
    ).all()


TERMS = {
    "at_weight": [attention_distance],
    "ft_weight": [measures.l1],
    "od_weight": [partial_squares],
    "ab_weight": [boundary_squares],
    "inherit_weight": list(measures.INHERIT.values()),
    "explore_weight": [*measures.EXPLORE.values(), attention_contrast],
}


@pytest.mark.parametrize("name", tuning.SIZE_LAW)
def test_a_weight_counts_on_maps_of_another_size_as_its_law_says(name):
    """Factors alike in kind, independent at every position, on 8 x 8 and on 4 x 4 positions."""
    sizes = {}
    for side in (8, 4):
        generator = torch.Generator().manual_seed(side)
        shared, x, y = (
            torch.rand(512, 32, side, side, generator=generator) - 0.4 for _ in range(3)
        )
        sizes[side] = [term(shared + x, shared + y).item() for term in TERMS[name]]
    for large, small in zip(sizes[8], sizes[4], strict=True):
        assert small / large == pytest.approx(0.25 ** tuning.SIZE_LAW[name], rel=0.1)


def test_the_note_on_size_names_the_weights_that_a_run_reads():
    def note(preset, *methods):
        return tuning.size_note([RunConfig.create(preset, method=m) for m in methods])

    assert note("class", "kd", "at", "ie-od").startswith(
        "The last feature maps have 4 × 4 positions"
    )
    assert note("class", "kd", "at", "ie-od").endswith(
        "4 times as much for at; 0.25 times as much for od; 2 times as much for explore."
    )
    assert note("class", "supervised", "kd", "sp") == note("paper", "at", "ft") == ""
