from xml.etree import ElementTree

import pytest
from frames import frame
from tiny import made_up

from iekd import records, results
from iekd.config import RunConfig

TEACHER, ALONE, KD, FT, IE = {"role": "teacher"}, {"method": "supervised"}, {"method": "kd"}, {"method": "ft"}, {"method": "ie-ft"}
SEEDS = {0: 30.0, 1: 31.0, 2: 29.5}


def worse(errors: dict[int, float], by: float) -> dict[int, float]:
    return {seed: error + by + 0.1 * seed for seed, error in errors.items()}


@pytest.fixture
def runs():
    return frame("class", (TEACHER, SEEDS), (ALONE, worse(SEEDS, 6)), (KD, worse(SEEDS, 4)), (FT, worse(SEEDS, 1)))


@pytest.fixture
def grid():
    arms = [ALONE, KD, FT, {**IE, "explore": "cka"}]
    return [RunConfig.create("class", **arm, seed=seed) for arm in arms for seed in range(3)]


def cells(html: str) -> dict[str, list[str]]:
    """The text of every body cell by the name of its row."""
    rows = ElementTree.fromstring(html).iter("tr")
    texts = [["".join(cell.itertext()) for cell in row] for row in rows]
    return {name: rest for name, *rest in texts}


def test_grid_table_keeps_the_rows_without_records(runs, grid):
    table = cells(results.grid_html(runs, grid, "caption"))
    assert list(table)[1:] == ["Teacher", "Student alone", "KD", "FT", "IE-FT (inherit L1, explore CKA)"]
    assert table["IE-FT (inherit L1, explore CKA)"] == ["no runs yet", "—", "—"]
    assert table["Student alone"][1] == "baseline" and table["FT"][2] == "baseline"
    assert table["KD"][1].startswith("−2.00") and "3 pairs" in table["KD"][1] and table["KD"][2].startswith("+3.00")


def test_grid_table_leaves_other_arms_alone(runs, grid):
    assert "KD" not in cells(results.grid_html(runs, [c for c in grid if c.method != "kd"], "caption"))


def test_without_any_record(runs, grid):
    nothing = runs.iloc[:0]
    assert set(map(tuple, list(cells(results.grid_html(nothing, grid, "caption")).values())[1:])) == {("no runs yet", "—", "—")}
    assert "no runs yet" in results.paper_html(nothing, "caption") and "no runs yet" in results.readme(nothing)


def test_paper_table_has_ours_beside_or_a_reason():
    ours = frame("paper", (TEACHER, {0: 6.4}), (FT, {0: 6.9, 1: 7.1}), ({**FT, "ft_weight": 50.0}, {0: 1.0}))
    table = cells(results.paper_html(ours, "caption"))
    assert table["teacher"][:2] == ["6.39", "6.40n = 1, no intervalours − paper: +0.01"]
    assert table["FT"][0] == "6.85" and table["FT"][1].startswith("7.00 ± 0.14") and table["FT"][1].endswith("+0.15")
    assert table["student"][1] == table["IE-FT"][3] == table["CRD"][1] == "no runs yet"


def test_readme_lists_the_arms_that_ran(runs):
    text = results.readme(runs)
    assert [line.split("]")[0] for line in text.splitlines() if line.startswith("| [")] == [
        "| [Teacher",
        "| [Student alone",
        "| [KD",
        "| [FT",
    ]
    assert "](runs/records/class/cifar10/resnet20-resnet8/kd)" in text


def test_update_readme_changes_only_what_lies_between_the_markers(tmp_path, runs):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- headline:start -->\nold\n<!-- headline:end -->\nafter\n")
    results.update_readme(readme, runs)
    results.update_readme(readme, runs)
    assert readme.read_text() == f"before\n<!-- headline:start -->\n{results.readme(runs)}<!-- headline:end -->\nafter\n"


def test_a_teacher_row_counts_the_runs_that_teach_and_no_other_of_that_network(tmp_path, monkeypatch):
    monkeypatch.setenv("IEKD_RUNS", str(tmp_path))
    reversed_pair = RunConfig.create("class", method="kd", teacher="resnet8", student="resnet20", teacher_epochs=15)
    alone = reversed_pair.teacher_run()  # as the student of the pair the other way round, it has more seeds
    for config in (reversed_pair, *(alone.replace(seed=seed) for seed in (0, 1, 100, 101))):
        made_up(config).save()
    found = results.grid_runs(records.load(), [reversed_pair])
    assert sorted(found.loc[found["role"] == "teacher", "seed"]) == [0, 1]
