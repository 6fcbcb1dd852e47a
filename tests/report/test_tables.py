from pathlib import Path
from xml.etree import ElementTree

import pytest
from frames import ALONE, FT, IE, KD, TEACHER, class_runs, frame
from tiny import made_up

from iekd import records
from iekd.config import RunConfig
from iekd.config import grid as grids
from iekd.report import phrases, readme, tables
from iekd.report.arms import decisive_runs, grid_runs
from iekd.report.paper import paper_html

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def committed():
    """The evidence at class scale."""
    return records.load(ROOT / "runs" / "records", preset="class")


@pytest.fixture
def runs():
    return class_runs()


@pytest.fixture
def grid():
    arms = [ALONE, KD, FT, {**IE, "explore": "cka"}]
    return [RunConfig.create("class", **arm, seed=seed) for arm in arms for seed in range(3)]


def panes(html: str) -> dict[str, ElementTree.Element]:
    """The tables of a block by the titles of their tabs."""
    tree = ElementTree.fromstring(html)
    return dict(
        zip(
            (label.text for label in tree.iter("label")),
            tree.findall(".//fieldset/div"),
            strict=True,
        )
    )


def cells(html: str, title: str = "last epoch") -> dict[str, list[str]]:
    """The text of every cell of one of the tables by the name of its row, the error first."""
    rows = panes(html)[title].iter("tr")
    texts = [["".join(cell.itertext()) for cell in row] for row in rows]
    if texts[0][-1] == "error, %":  # behind the differences
        texts = [[name, error, *differences] for name, *differences, error in texts]
    return {name: rest for name, *rest in texts}


def test_a_grid_without_a_teacher_makes_a_table_of_its_students(runs):
    for arm in (ALONE, {"method": "tf-kd"}):
        found = grid_runs(runs, [RunConfig.create("class", **arm)])
        assert list(found["method"].unique()) == (["supervised"] if arm == ALONE else [])


def test_grid_table_keeps_the_rows_without_records(runs, grid):
    table = cells(tables.grid_html(runs, grid, "caption"))
    assert list(table)[1:] == [
        "Teacher",
        "Student alone",
        "KD",
        "FT",
        "IE-FT (inherit L1, explore CKA)",
    ]
    assert table["IE-FT (inherit L1, explore CKA)"] == [
        "no runs yet",
        "—",
        "—",
    ]  # and not an empty cell
    assert table["Student alone"][1] == "baseline" and table["FT"][2] == "baseline"
    assert (
        table["KD"][1].startswith("−2.00")
        and "3 pairs" in table["KD"][1]
        and table["KD"][2].startswith("+3.00")
    )


def test_a_table_without_differences_does_not_explain_them(runs, grid):
    explained = ("Differences", "Holm", "inconclusive")
    assert all(word in tables.grid_html(runs, grid, "caption") for word in explained)
    alone = tables.grid_html(runs, grid, "caption", baselines=())
    assert not any(word in alone for word in explained)


def test_training_errors_stand_beside_test_errors_where_they_are_on_record(runs, grid):
    runs["last_train"] = runs["last"].where(runs["method"].eq("ft")) / 2
    html = tables.grid_html(runs, grid, "Table")
    by_rule = {title: cells(html, title) for title in panes(html)}
    mean = runs.loc[runs["method"].eq("ft"), "last_train"].mean()
    assert f"training {mean:.2f}" in by_rule["last epoch"]["FT"][0]
    assert "training" not in by_rule["last epoch"]["KD"][0]
    # after the last epoch, and no other
    assert "training" not in by_rule["best on test (biased)"]["FT"][0]
    assert "last_train" not in tables.grid_html(class_runs(), grid, "Table")


def test_grid_table_leaves_other_arms_alone(runs, grid):
    assert "KD" not in cells(
        tables.grid_html(runs, [c for c in grid if c.method != "kd"], "caption")
    )


def test_without_any_record(runs, grid):
    nothing = runs.iloc[:0]
    assert set(
        map(tuple, list(cells(tables.grid_html(nothing, grid, "caption")).values())[1:])
    ) == {("no runs yet", "—", "—")}
    assert "no runs yet" in paper_html(nothing, "caption") and "no runs yet" in readme.readme(
        nothing
    )


def test_a_grid_table_shows_every_rule_and_leads_to_records(runs, grid):
    runs.loc[(runs["method"] == "kd") & (runs["seed"] == 1), "last"] += (
        0.2  # a constant difference has no interval
    )
    runs = runs.assign(best_on_test=runs["last"] - 1.0, last_exact=runs["last"] + 0.03)
    html = tables.grid_html(runs, grid, "CIFAR-10 <test> & more", "best_on_test")
    assert list(panes(html)) == [
        "best on test (biased)",
        "last epoch",
        "selected on validation",
        "last epoch, exact images",
    ]
    first = {title: cells(html, title)["FT"][0].partition("n")[0] for title in panes(html)}
    assert first["best on test (biased)"].startswith("30.27") and first["last epoch"].startswith(
        "31.27"
    )
    assert first["last epoch, exact images"].startswith("31.30")
    tree = ElementTree.fromstring(html)
    assert all(th.get("scope") for th in tree.iter("th")) and "nan" not in "".join(tree.itertext())
    coloured = [td for td in tree.iter("td") if td.get("class") in ("lower", "higher")]
    words = {"lower": "▼ lower", "higher": "▲ higher"}
    assert {td.get("class") for td in coloured} == set(words)  # and never by colour alone
    assert all(words[td.get("class")] in "".join(td.itertext()) for td in coloured)
    targets = {
        a.get("href").removeprefix("records.html#")
        for a in tree.iter("a")
        if a.get("class") != "ie-download"
    }
    index = ElementTree.fromstring(f"<main>{tables.record_index_html(runs)}</main>")
    sections = list(index.iter("section"))
    assert targets == {section.get("id") for section in sections}
    assert sum(a.get("href").endswith(".json") for a in index.iter("a")) == len(runs)
    assert all(section.find("p/code").text.endswith("--seed SEED") for section in sections)


def test_arms_with_other_seeds_are_paired_on_the_common_ones(grid):
    more = {seed: 40.0 + 0.3 * seed for seed in range(6)}
    uneven = frame("class", (ALONE, more), (KD, {0: 39.0, 1: 39.5, 2: 39.2, 9: 1.0}))
    table = cells(tables.grid_html(uneven, grid, "caption"))
    assert (
        "n = 6," in table["Student alone"][0]
        and "n = 4," in table["KD"][0]
        and "3 pairs" in table["KD"][1]
    )


def test_below_a_table_stands_the_sweep_that_makes_its_runs(runs, grid):
    def command(html):
        return ElementTree.fromstring(html).find(".//code").text

    assert (
        command(tables.grid_html(runs, grid, "caption")) == "iekd sweep runs/class.yaml"
    )  # seeds 0 to 2 of its arms
    late = frame(
        "class",
        (ALONE, {100: 37.0}),
        ({**IE, "explore": "cka"}, {100: 35.0}),
        ({"method": "at"}, {119: 36.0}),
    )
    configs = [*grid, RunConfig.create("class", method="at")]
    wanted = "iekd sweep runs/confirm-ablations.yaml runs/confirm-methods.yaml"
    assert (
        command(tables.grid_html(late[late["method"] != "supervised"], configs, "caption"))
        == wanted
    )
    assert command(tables.grid_html(late, configs, "caption")).startswith(wanted)
    assert command(paper_html(runs, "caption")).startswith("iekd sweep runs/paper/1-main.yaml")
    smoke = [RunConfig.create("smoke", method="kd")]
    assert (
        command(tables.grid_html(runs, smoke, "caption", command="papermill page.ipynb"))
        == "papermill page.ipynb"
    )


def signs(cell: str) -> set[str]:
    return {word for word in ("lower", "higher") if phrases.SIGNS[word] in cell}


@pytest.mark.parametrize(
    "grid_file", ["class.yaml", "confirm-ablations.yaml", "confirm-methods.yaml", "methods.yaml"]
)
def test_no_sign_contradicts_its_corrected_p(grid_file, committed):
    """Of every difference: a sign, a word and a colour if and only if its p is below 5 %."""
    usual = [RunConfig.create("class", method=m) for m in ("supervised", "ft", "ie-ft")]
    configs = [*usual, *grids.read(ROOT / "runs" / grid_file)]
    runs = decisive_runs(committed, configs)
    html, found = (
        tables.grid_html(runs, configs, "caption", baselines=("supervised", "ie-ft")),
        set(),
    )
    for cell in (cell for pane in panes(html).values() for cell in pane.iter("td")):
        text, kind = "".join(cell.itertext()), cell.get("class")
        if "pairs, p" not in text:
            assert not signs(text) and kind in (None, "none")
            continue
        decided = "p < 0.001" in text or float(text.rpartition("p = ")[2]) < 0.05
        assert (kind in ("lower", "higher")) == decided and signs(text) == (
            {kind} if decided else set()
        ), text
        assert f" {kind}" in text and (not decided or text.startswith("−") == (kind == "lower")), (
            text
        )
        found.add(kind)
    assert {"lower", "higher"} <= found and "p = 0.050" not in html  # that could be either


def test_a_grid_says_what_its_weights_count_and_which_versions_it_compares(committed):
    configs = [
        RunConfig.create("class", method="ie-ft"),
        *grids.read(ROOT / "runs" / "confirm-ablations.yaml"),
    ]
    runs = decisive_runs(committed, configs)
    text = "".join(
        ElementTree.fromstring(
            tables.grid_html(runs, configs, "x", baselines=("ie-ft",))
        ).itertext()
    )
    assert (
        "The last feature maps have 4 × 4 positions" in text
        and "2 times as much for inherit, explore" in text
    )
    assert "differences the two runs were made with different versions of PyTorch (2." in text
    assert "IE-FT, inherit weight 500, explore weight 500, seed 103: 39.10" in text
    assert phrases.version_note(runs[runs["seed"] == 100], ("ie-ft",)) == ""


def test_every_committed_student_is_in_a_grid(own_losses):
    evidence = records.load(ROOT / "runs" / "records", preset=["class", "paper"])
    named = set().union(*grids._grids().values())
    parents = {
        path for file in grids._grids() for path in grids.with_parents(grids.read(ROOT / file))
    }
    second = {config.path for config in grids.read(ROOT / "runs" / "mirror" / "grid.yaml")}
    assert set(evidence["path"]) <= named | parents | second


def test_remark_on_recompressed_test_images(runs):
    assert phrases.remark(runs) == "" and "recompressed" not in tables.grid_html(
        runs, [RunConfig.create("class", method="kd")], "x"
    )
    known = runs.assign(last_exact=runs["last"] - 0.01)
    known.loc[0, "last_exact"] += 0.05
    remark = phrases.remark(known)
    assert (
        "20 of the 10,000 test images" in remark
        and "other 9,980" in remark
        and "more than 0.04 points" in remark
    )
    assert remark in "".join(
        ElementTree.fromstring(
            tables.grid_html(known, [RunConfig.create("class", method="kd")], "x")
        ).itertext()
    )
    assert remark in readme.readme(known)


def test_recompressed_images_are_counted():
    """Errors come in steps of one image: those on the exact ones fit their number only."""
    exact = (
        records.load(ROOT / "runs" / "records", dataset="cifar10")["last_exact"]
        .dropna()
        .astype(float)
    )

    def misfit(images):
        return (exact * images / 100 - (exact * images / 100).round()).abs().max()

    exactly = phrases.TEST_IMAGES - phrases.RECOMPRESSED
    assert misfit(exactly) < 1e-2 < min(misfit(exactly - 1), misfit(exactly + 1))


def test_paper_table_has_ours_beside_or_a_reason():
    ours = frame(
        "paper",
        (TEACHER, {0: 6.4}),
        (FT, {0: 6.9, 1: 7.1}),
        ({**FT, "ft_weight": 50.0}, {0: 1.0}),
        (IE, {0: 6.5, 1: 6.52, 2: 6.48}),
        (KD, {0: 7.1, 1: 7.11, 2: 7.09}),
        (ALONE, {0: 7.7, 1: 7.9}),
    )
    html = paper_html(ours, "caption")
    table = cells(html)
    assert table["teacher"][:2] == ["6.39", "6.40n = 1, no interval+0.01"]
    assert table["FT"][0] == "6.85" and table["FT"][1].startswith("7.00 ± 0.14")
    assert table["FT"][1].endswith(
        "+0.15 ≈ no interval, p = 0.749"
    )  # t(1) = 12.706, standard error 0.1
    assert table["IE-FT"][1].endswith(
        "+0.13 ▲ [+0.08, +0.18], p = 0.023"
    )  # t(2) = 11.26, the second of four that are tested
    assert table["KD"][1].endswith("−0.27 ▼ [−0.29, −0.25], p = 0.002")
    assert table["student"][3].startswith(
        "7.80 ± 0.14"
    )  # the same student alone beside its other teacher
    assert table["IE-FT"][3] == table["CRD"][1] == "no runs yet"
    assert (
        table["FT"][5] == "cannot be compared: feature maps differ in size"
        and table["AT"][5] == "no runs yet"
    )
    kinds = {td.get("class") for td in panes(html)["last epoch"].iter("td")}
    assert {"lower", "higher", "inconclusive", "none"} <= kinds
    link = ElementTree.fromstring(html).find(".//a[@class='ie-download']")
    assert link.text == "CSV of the 11 runs"  # without the arm at another weight
    assert ElementTree.fromstring(html).find(".//code").text == "iekd sweep runs/paper/1-main.yaml"


def test_at_paper_scale_nothing_is_selected_on_validation():
    nothing = {"val_selected": None, "val_selected_epoch": None}
    ours = frame(
        "paper", (TEACHER, {0: 6.4}), (KD, {0: 7.1, 1: 7.3}), (ALONE, {0: 7.7, 1: 7.9})
    ).assign(**nothing)
    configs = [RunConfig.create("paper", method=m) for m in ("supervised", "kd")]
    for html in (tables.grid_html(ours, configs, "caption"), paper_html(ours, "caption")):
        selected = cells(html, "selected on validation")
        assert "validation_images = 0" in "".join(panes(html)["selected on validation"].itertext())
        assert "validation_images" not in "".join(panes(html)["last epoch"].itertext())
        assert "no validation images" in selected["KD"] and "no runs yet" not in selected["KD"]
        assert (
            "7.10"
            in cells(html, "best on test (biased)")["KD"][0]
            + cells(html, "best on test (biased)")["KD"][1]
        )
    small = tables.grid_html(ours.iloc[:0], [RunConfig.create("class", method="kd")], "caption")
    assert cells(small, "selected on validation")["KD"][0] == "no runs yet"


def test_a_teacher_row_counts_the_runs_that_teach_and_no_other_of_that_network(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("IEKD_RUNS", str(tmp_path))
    reversed_pair = RunConfig.create(
        "class", method="kd", teacher="resnet8", student="resnet20", teacher_epochs=15
    )
    alone = (
        reversed_pair.teacher_run()
    )  # as the student of the pair the other way round, it has more seeds
    for config in (reversed_pair, *(alone.replace(seed=seed) for seed in (0, 1, 100, 101))):
        made_up(config).save()
    found = grid_runs(records.load(), [reversed_pair])
    assert sorted(found.loc[found["role"] == "teacher", "seed"]) == [0, 1]
