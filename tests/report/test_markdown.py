"""README's headline table."""

from pathlib import Path

import pytest
from frames import ALONE, FT, IE, TEACHER, class_runs, errors, frame

from iekd.errors import StoreError
from iekd.report import readme

ROOT = Path(__file__).parents[2]


@pytest.fixture
def runs():
    return class_runs()


def test_readme_lists_the_arms_that_ran(runs):
    text = readme.readme(runs)
    assert [line.split("]")[0] for line in text.splitlines() if line.startswith("| [")] == [
        "| [Teacher",
        "| [Student alone",
        "| [KD",
        "| [FT",
    ]
    assert "](runs/records/class/cifar10/resnet20-resnet8/kd)" in text


def test_at_desk_scale_the_headline_has_the_primary_arms():
    """Every question of the protocol needs its rival beside IE-FT; missing seeds are said."""
    last = {300: 10.0, 301: 10.4, 302: 10.1}
    arms = [ALONE, FT, {**IE, "explore": "none"}, {**IE, "explore_target": "shuffled"}, IE]
    text = readme.readme(
        frame("desk", (TEACHER, errors(7.0, 7.1)), *((a, last) for a in arms)), "desk"
    )
    names = [line.split("]")[0].strip("| [") for line in text.splitlines() if "](" in line]
    assert names[:3] == ["Teacher", "Student alone", "FT"] and names[-1] == "IE-FT"
    assert "inheritance only" in names[3] and "shuffled" in names[4]
    assert "45,000 training images" in text and "8 seeds of each method are planned" in text
    assert "The pair is the paper's" in text and "setting, not the paper's" not in text


def test_update_readme_changes_only_what_lies_between_the_markers(tmp_path, runs):
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- headline:start -->\nold\n<!-- headline:end -->\nafter\n")
    readme.update_readme(runs, path=page)
    readme.update_readme(runs, path=page)
    assert (
        page.read_text()
        == f"before\n<!-- headline:start -->\n{readme.readme(runs)}<!-- headline:end -->\nafter\n"
    )


@pytest.mark.parametrize(
    "text", ["no markers", "<!-- headline:end -->\n<!-- headline:start -->\n", None]
)
def test_a_readme_without_a_place_for_the_table_stays_as_it_is(tmp_path, runs, text):
    page = tmp_path / "README.md"
    if text:
        page.write_text(text)
    with pytest.raises(StoreError, match="README.md needs one place for the table"):
        readme.update_readme(runs, path=page)
    assert (page.read_text() if text else page.exists()) == (text or False)


def test_without_runs_the_table_of_readme_stays_as_it_is(tmp_path, runs):
    with pytest.raises(StoreError, match="There are no runs yet at class scale"):
        readme.update_readme(runs[runs["method"] != "supervised"], path=tmp_path / "README.md")
