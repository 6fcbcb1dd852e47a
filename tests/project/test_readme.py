"""README's headline table is what the records say; `iekd table --readme` writes it."""

from pathlib import Path

import pytest

from iekd import records
from iekd.report import readme

ROOT = Path(__file__).parents[2]


def test_headline_table_is_generated():
    runs = records.load(ROOT / "runs" / "records", preset="class")
    if runs.empty:
        pytest.skip("there are no records of class scale")
    (table,) = readme.MARKERS.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert table == readme.readme(runs), "run: iekd table --readme"
