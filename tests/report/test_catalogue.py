"""The table of methods is read from the code: each has its text, and the text names its source."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from iekd.benchmark import bench
from iekd.config.known import methods
from iekd.report import catalogue

FIELDS = {name: row.fields for name, row in methods().items()}

ROWS = {row["method"]: row for row in catalogue.rows()}


def test_no_method_is_missing():
    assert set(ROWS) == set(FIELDS) - {"supervised", "factor-ae"}


@pytest.mark.parametrize("name", ROWS)
def test_every_method_says_what_it_does_where_it_is_from_and_what_it_weighs(name):
    row = ROWS[name]
    assert len(row["loss"]) > 30 and row["weights"] and Path(row["file"]).is_file()
    assert name.startswith("ie-") or re.search(r"(19|20)\d\d|arXiv", row["idea"]), (
        "no year of a source"
    )


def test_what_a_docstring_says_further_is_folded():
    tree = ElementTree.fromstring(catalogue.methods_html(None, "All"))
    folds = [fold for fold in tree.iter("details") if fold.get("class") == "ie-fold"]
    folded = ["".join(fold.itertext()) for fold in folds]
    assert len(folded) == len(ROWS) and all("Code: iekd/" in text for text in folded)
    assert sum(bool(row["more"]) for row in ROWS.values()) > len(ROWS) / 2
    assert any("There the teacher runs in training mode" in text for text in folded)
    assert "`" not in "".join(tree.itertext())


def test_what_was_measured_stands_in_the_table():
    cost = {"method": "kd", "cost": 1.5, "low": 1.25, "high": 1.75, "parameters": 1234}
    page = catalogue.methods_html({"methods": [cost]}, "All")
    assert (
        "1,234" in page
        and "1.50<br/><small>1.25 to 1.75" in page
        and page.count("not measured") == len(ROWS) - 1
    )
    assert catalogue.methods_html(None, "All").count("not measured") == len(ROWS)
    assert {"supervised", *ROWS} == set(bench.METHODS)
