"""The markup of tables, and what stands below them."""

import base64
from xml.etree import ElementTree

import pandas as pd
import pytest
from frames import paper_runs

from iekd.report import html, tables


@pytest.fixture
def runs():
    return paper_runs()


def content(link: ElementTree.Element) -> list[str]:
    """The lines of the CSV file that a link carries."""
    return base64.b64decode(link.get("href").partition(",")[2]).decode().splitlines()


def test_small_lines_of_a_cell_begin_anew_where_no_style_sheet_says_so():
    cell = html.Cell("1.50 ± 0.20", ["n = 5", "[1.25, 1.75]"], href="records.html")
    shown = html.row("IE-FT", cell, html.Cell("", ["no runs yet"]))
    assert "</a><br/><small>n = 5</small><br/><small>[1.25, 1.75]</small></td>" in shown
    assert "<td><small>no runs yet</small></td>" in shown


def test_a_table_reads_well_where_no_style_sheet_is():
    shown = html.table("Errors", "in percent", ["arm"], [], foot=html.foot("CSV", "Command: x"))
    assert "<span>Errors</span><br/><small>in percent</small>" in shown
    assert ">CSV Command: x<" in shown
    sentences = html.table("Claims", "", ["claim"], [], html.SENTENCES)
    claims = html.frame(pd.DataFrame({"claim": ["It holds."]}), html.SENTENCES, index=False)
    assert html.LEFT not in shown and html.LEFT in sentences and html.LEFT in claims
    unknown = html.frame(pd.DataFrame({"sd": [0.5, float("nan")]}))
    assert "<td>—</td>" in unknown and "nan" not in unknown.lower()


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
    shown = f"#{radios[2].get('id')}:checked ~ .ie-pane:nth-of-type(3) {{display: block}}"
    assert shown in tree.find("style").text and tree.find("style").text.count("block") == 3
    other = ElementTree.fromstring(
        html.tabs({name: html.tag("p", k) for k, name in enumerate(("one", "two"))}, "Rule:")
    )
    assert radios[0].get("name") != other.find("input").get(
        "name"
    )  # two on one page do not switch each other
    assert html.tabs({"alone": "<p>1</p>"}, "Rule:") == "<p>1</p>"


def test_a_number_of_one_run_leads_to_its_record():
    row = html.row("KD", tables.record_cell("class/kd-kd_alpha=0.9/seed0", 39.125))
    link = ElementTree.fromstring(row).find("td/a")
    assert link.get("href") == "records/class/kd-kd_alpha%3D0.9/seed0.json" and link.text == "39.12"
    assert tables.record_cell("p", float("nan")) == html.Cell("—")


def test_what_is_folded_is_there_and_escaped():
    found = html.folded("More & more", html.bullets(["a < b", html.link("x", "y.html")]))
    details = ElementTree.fromstring(found)
    assert details.tag == "details" and details.find("summary").text == "More & more"
    first, second = details.findall("ul/li")
    assert first.text == "a < b" and second.find("a").get("href") == "y.html"
