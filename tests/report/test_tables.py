import base64
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from frames import frame

from iekd.report import comparison, html, labels, phrases, readme, tables
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


def test_comparison_pairs_on_common_seeds(runs):
    table = comparison.comparison(scope(runs, "paper")).set_index("label")
    kd = table.loc["KD"]
    assert (kd["n"], kd["pairs"]) == (4, 3)
    assert kd["difference"] == pytest.approx(np.mean([7.4 - 7.8, 7.5 - 7.9, 7.1 - 7.6]))
    assert table.loc["IE-FT", "outcome"] == "lower" and table.loc["Teacher", "outcome"] == ""
    assert table["outcome"].iloc[-1] == "equivalent" and table.loc["FT", "outcome"] == ""
    assert table.loc["FT", "pairs"] == 1 and np.isnan(table.loc["FT", "p_holm"])
    assert (table["p_holm"].dropna() >= table["p"].dropna()).all()


def test_the_corrected_p_decides_and_not_the_interval():
    alone = {k: 40 + 0.1 * k for k in range(5)}
    near = {k: v - 0.6 + 0.3 * (-1) ** k for k, v in alone.items()}  # its interval excludes zero
    others = [
        ({"method": m}, {k: v + i + (-1) ** k for k, v in alone.items()})
        for i, m in enumerate(("at", "od", "sp", "cc"))
    ]
    table = comparison.comparison(
        scope(frame("class", (ALONE, alone), (KD, near), *others), "class")
    ).set_index("label")
    kd = table.loc["KD"]
    assert (
        kd["difference_high"] < 0
        and kd["p"] < 0.05 < kd["p_holm"]
        and kd["outcome"] == "inconclusive"
    )
    assert tables.difference_lines(kd)[0] == "−0.54 ≈ inconclusive"


def test_runs_far_from_their_arm_are_named():
    rng = np.random.default_rng(0)
    values = {k: 32 + 0.4 * rng.standard_normal() for k in range(100, 120)}
    usual = scope(frame("class", (IE, values), (FT, values)), "class")
    assert phrases.outliers(usual) == ""
    strange = scope(frame("class", (IE, values), (FT, {**values, 103: 39.1})), "class")
    found = phrases.outliers(strange)
    assert "FT, seed 103: 39.10 (median of the arm: 3" in found and "IE-FT" not in found
    few = scope(frame("class", (FT, {0: 32.0, 1: 32.1, 2: 39.1})), "class")
    assert phrases.outliers(few) == ""


def test_paper_value_only_where_everything_matches(runs):
    values = {row["label"]: paper_value(row) for row in scope(runs, "paper").to_dict("records")}
    assert values["IE-FT"] == 6.37 and values["Teacher"] == 6.39
    assert np.isnan(values["IE-FT (inherit L1, explore CKA)"])  # not in the paper's table
    same_pair = frame(
        "class", (ALONE, errors(1, 2)), (KD, errors(1, 2)), teacher="resnet56", student="resnet20"
    )
    small = scope(same_pair, "class", teacher="resnet56", student="resnet20")
    values = [paper_value(row) for row in small.to_dict("records")]
    assert len(values) == 4 and np.isnan(values).all()  # another recipe on other images


def test_missing_baseline_is_named(runs):
    with pytest.raises(KeyError, match="supervised.*kd"):
        comparison.comparison(scope(runs[runs["method"] != "supervised"], "paper"))


def test_two_pairs_stand_below_one_another(runs):
    setting = dict(teacher="wrn40_1")
    other = frame("paper", (ALONE, errors(7, 8)), (FT, errors(6, 7.5)), **setting)
    table = comparison.arms(pd.concat([runs, other]))
    lines = readme.markdown(table).splitlines()
    assert len(lines) == 2 + len(table) and all(line.count("|") == 7 for line in lines)


def content(link: ElementTree.Element) -> list[str]:
    """The lines of the CSV file that a link carries."""
    return base64.b64decode(link.get("href").partition(",")[2]).decode().splitlines()


def test_csv_link_holds_the_runs(runs):
    head, *lines = content(ElementTree.fromstring(tables.csv_link(runs)))
    assert len(lines) == len(runs) and {"seed", "last", "best_on_test", "hash"} <= set(
        head.split(",")
    )
    assert "last_exact" not in head  # nothing is known of it here
    assert (
        "cka_inherit"
        in content(ElementTree.fromstring(tables.csv_link(runs.assign(cka_inherit=0.5))))[0]
    )


def test_csv_link_holds_any_other_table_as_it_is():
    link = ElementTree.fromstring(
        tables.csv_link(pd.DataFrame({"operator": ["conv", "add"], "share": [0.7, 0.3]}), "x.csv")
    )
    assert (
        content(link) == ["operator,share", "conv,0.7", "add,0.3"]
        and link.get("download") == "x.csv"
    )


def test_foot_names_file_command_and_remark(runs):
    foot = ElementTree.fromstring(
        tables.foot(runs, "Class scale: IE & FT", "iekd sweep a.yaml && b", "Mind < this.")
    )
    assert foot.find("a").get("download") == "class-scale-ie-ft.csv"
    assert (
        foot.find(".//code").text == "iekd sweep a.yaml && b"
        and foot.find("small").text == "Mind < this."
    )
    assert not list(
        ElementTree.fromstring(tables.foot(runs.iloc[:0], "caption"))
    )  # nothing to download


def test_tabs_show_the_first_and_know_each_other():
    tree = ElementTree.fromstring(
        html.tabs(
            {name: html.tag("p", k) for k, name in enumerate(("one", "two", "three"), 1)}, "Rule:"
        )
    )
    radios, labels, panes = tree.findall("input"), tree.findall("label"), tree.findall("div")
    assert len({r.get("name") for r in radios}) == 1 and [r.get("checked") for r in radios] == [
        "checked",
        None,
        None,
    ]
    assert [label.get("for") for label in labels] == [r.get("id") for r in radios]
    assert ["".join(pane.itertext()) for pane in panes] == ["1", "2", "3"] and tree.find(
        "legend"
    ).text == "Rule:"
    other = ElementTree.fromstring(
        html.tabs({name: html.tag("p", k) for k, name in enumerate(("one", "two"))}, "Rule:")
    )
    assert radios[0].get("name") != other.find("input").get(
        "name"
    )  # two on one page do not switch each other
    assert html.tabs({"alone": "<p>1</p>"}, "Rule:") == "<p>1</p>"


def test_the_style_sheet_shows_as_many_panes_as_a_table_has_rules():
    style = (Path(__file__).parents[2] / "book" / "_static" / "custom.css").read_text(
        encoding="utf-8"
    )
    for k in range(1, len(tables.RULES) + 1):
        assert f"input:nth-of-type({k}):checked ~ .ie-pane:nth-of-type({k})" in style


def test_a_number_of_one_run_leads_to_its_record():
    row = html.row("KD", tables.record_cell("class/kd-kd_alpha=0.9/seed0", 39.125))
    link = ElementTree.fromstring(row).find("td/a")
    assert link.get("href") == "records/class/kd-kd_alpha%3D0.9/seed0.json" and link.text == "39.12"
    assert tables.record_cell("p", float("nan")) == html.Cell("—")
