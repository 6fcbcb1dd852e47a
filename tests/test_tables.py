from xml.etree import ElementTree

import numpy as np
import pytest
from frames import frame

from iekd import arms, tables

TEACHER, ALONE, KD, FT = {"role": "teacher"}, {"method": "supervised"}, {"method": "kd"}, {"method": "ft"}
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
        return arms.label(frame("paper", ({**IE, **fields}, {0: 1.0})).iloc[0])

    assert name() == "IE-FT"
    assert name(explore="none") == "inheritance only (L1)"
    assert name(inherit="none", explore="partial-l2") == "exploration only (partial L2)"
    assert name(inherit="partial-l2", explore="cka") == "IE-FT (inherit partial L2, explore CKA)"
    assert name(explore="cka", explore_weight=5.0, split="halves").endswith(", explore weight 5, split halves")
    assert set(tables.arms(runs)["label"]) >= {"Student alone", "KD", "FT", "IE-FT"}


def test_labels_are_the_papers_names():
    paper = set(tables.paper_table().index)
    for method in ("kd", "at", "od", "tf-kd", "fitnet", "ab", "ie-at", "ie-od"):
        row = arms.scope(frame("paper", ({"method": method}, {0: 7.0})), "paper").iloc[0]
        assert row["label"] == tables.paper_name(row) and row["label"] in paper and tables.paper_value(row) > 0


def test_scope_finds_tf_kd_though_it_has_no_teacher():
    runs = frame("class", (KD, {0: 39.0}), ({"method": "tf-kd"}, {0: 39.5}), ({"method": "tf-kd", "tfkd_weight": 0.3}, {0: 38.0}))
    other = frame("class", ({"method": "tf-kd"}, {0: 1.0}), student="resnet14")
    rows = arms.scope(arms.pd.concat([runs, other]), "class", teacher="resnet20", student="resnet8")
    assert list(rows["label"]) == ["KD", "Tf-KD", "Tf-KD, tfkd weight 0.3"] and set(rows["scope"]) == {"resnet20-resnet8"}


def test_scope_finds_teacher_and_student_alone(runs):
    other = frame("paper", (KD, {0: 1.0}), teacher="wrn40_1")
    rows = arms.scope(arms.pd.concat([runs, other]), "paper")
    assert len(rows) == len(runs) and (rows["role"] == "teacher").sum() == 3
    small = frame("class", (TEACHER, {0: 20.0}), (ALONE, {0: 40.0}), (KD, {0: 39.0}))  # the teacher has its own epochs
    assert list(arms.scope(small, "class")["label"]) == ["Teacher", "Student alone", "KD"]


def test_comparison_pairs_on_common_seeds(runs):
    table = tables.comparison(arms.scope(runs, "paper")).set_index("label")
    kd = table.loc["KD"]
    assert (kd["n"], kd["pairs"]) == (4, 3)
    assert kd["difference"] == pytest.approx(np.mean([7.4 - 7.8, 7.5 - 7.9, 7.1 - 7.6]))
    assert table.loc["IE-FT", "effect"] == "better" and table.loc["Teacher", "effect"] == ""
    assert table["effect"].iloc[-1] == "same"
    assert table.loc["FT", "pairs"] == 1 and np.isnan(table.loc["FT", "p_holm"])
    assert (table["p_holm"].dropna() >= table["p"].dropna()).all()


def test_paper_value_only_where_everything_matches(runs):
    table = tables.comparison(arms.scope(runs, "paper")).set_index("label")
    assert table.loc["IE-FT", "paper"] == 6.37 and table.loc["Teacher", "paper"] == 6.39
    assert table.loc["Student alone", "versus_paper"] == pytest.approx(7.75 - 7.78)
    assert np.isnan(table["paper"].iloc[-1])  # explore=cka is not in the paper's table
    same_pair = frame("class", (ALONE, errors(1, 2)), (KD, errors(1, 2)), teacher="resnet56", student="resnet20")
    small = tables.comparison(arms.scope(same_pair, "class", teacher="resnet56", student="resnet20"))
    assert small["paper"].isna().all()  # another recipe on other images


def test_missing_baseline_is_named(runs):
    with pytest.raises(KeyError, match="supervised.*kd"):
        tables.comparison(arms.scope(runs[runs["method"] != "supervised"], "paper"))


def test_html(runs):
    page = tables.html(tables.comparison(arms.scope(runs, "paper")), "CIFAR-10 <test> & more")
    tree = ElementTree.fromstring(page)
    rows = tree.findall(".//tbody/tr")
    assert len(rows) == 6 and all(len(row) == 4 for row in rows)
    assert all(th.get("scope") for th in tree.iter("th")) and tree.find(".//caption") is not None
    better = [td for td in tree.iter("td") if td.get("class") == "better"]
    assert better and all("better" in "".join(td.itertext()) for td in better)  # never by colour alone
    targets = {a.get("href").removeprefix("records.html#") for a in tree.iter("a")}
    index = ElementTree.fromstring(f"<main>{tables.record_index_html(runs)}</main>")
    assert targets == {section.get("id") for section in index}
    assert sum(a.get("href").endswith(".json") for a in index.iter("a")) == len(runs)
    assert "nan" not in page


def test_two_pairs_stand_side_by_side(runs):
    setting = dict(teacher="wrn40_1")
    other = frame("paper", (ALONE, errors(7, 8)), (FT, errors(6, 7.5)), **setting)
    scopes = arms.scope(runs, "paper"), arms.scope(other, "paper", **setting)
    table = tables.pd.concat([tables.comparison(s) for s in scopes])
    rows = ElementTree.fromstring(tables.html(table, "two")).findall(".//tbody/tr")
    assert all(len(row) == 7 for row in rows)
    lines = tables.markdown(table).splitlines()
    assert len(lines) == 2 + len(table) and all(line.count("|") == 8 for line in lines)


def test_csv_link_holds_the_runs(runs):
    import base64

    link = ElementTree.fromstring(tables.csv_link(runs))
    text = base64.b64decode(link.get("href").partition(",")[2]).decode()
    assert len(text.splitlines()) == len(runs) + 1
