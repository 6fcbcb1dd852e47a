"""README's headline table is what the records say; `iekd table --readme` writes it."""

from pathlib import Path

import pytest

from iekd import records
from iekd.report import readme

ROOT = Path(__file__).parents[2]


def test_headline_table_is_generated():
    (table,) = readme.MARKERS.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    preset = table.removeprefix("**").partition(" ")[0].lower()
    runs = records.load(ROOT / "runs" / "records", preset=preset)
    if runs.empty:
        pytest.skip(f"there are no records of {preset} scale")
    assert table == readme.readme(runs, preset), f"run: iekd table --readme --preset {preset}"
