"""What a class gets: chapters without answers, which run by themselves."""

import nbformat
import pytest
from nbclient import NotebookClient

from iekd.cli import handout
from iekd.errors import ConfigError

NAMES = handout.chapters()


def read(path):
    return nbformat.read(path, as_version=4)


def tagged(notebook, tag):
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("class") / "handout"
    return {path.stem: path for path in handout.write(folder)}


def test_all_chapters_with_exercises_are_there(given):
    assert list(given) == NAMES and len(NAMES) >= 10


@pytest.mark.parametrize("name", NAMES)
def test_no_answer_is_left_and_every_exercise_has_a_place_to_write(given, name):
    made, book = read(given[name]), read(handout.BOOK / f"{name}.ipynb")
    nbformat.validate(made)
    answers = {cell.source for cell in tagged(book, "solution")}
    assert not tagged(made, "solution") and not answers & {cell.source for cell in made.cells}
    numbers = sum("**1.**" in cell.source for cell in made.cells)
    assert numbers == 1 and len(tagged(made, "exercise")) >= 2
    kept = [cell.id for cell in book.cells if "solution" not in cell.metadata.get("tags", [])]
    assert [cell.id for cell in made.cells if cell.source != handout.PLACE] == kept


def test_links_lead_to_what_comes_along(tmp_path):
    other = "inherit-and-explore"
    alone = handout.write(tmp_path / "one", ["measures"])
    together = handout.write(tmp_path / "two", ["measures", other])
    text, both = (
        "\n".join(cell.source for path in paths for cell in read(path).cells)
        for paths in (alone, together)
    )
    assert not handout.LINK.search(text) and f"({other}.ipynb)" in both
    assert {page for _, page in handout.LINK.findall(both)} <= {"measures", other}


def test_pictures_come_along(tmp_path, monkeypatch):
    monkeypatch.setattr(handout, "chapters", lambda: ["index"])
    handout.write(tmp_path)
    assert (tmp_path / "_static" / "ie-kd.svg").stat().st_size > 1000


def test_the_teacher_s_copy_shows_the_answers(tmp_path):
    (path,) = handout.write(tmp_path, ["mutual"], solutions=True)
    answers = tagged(read(path), "solution")
    assert answers and not any("jupyter" in cell.metadata for cell in answers)


def test_work_is_never_written_over_and_a_wrong_name_is_refused(tmp_path):
    (path,) = handout.write(tmp_path, ["factor"])
    path.write_text("work of an hour")
    with pytest.raises(ConfigError, match="factor.ipynb already exists and may hold work"):
        handout.write(tmp_path, ["mutual", "factor"])
    assert path.read_text() == "work of an hour" and not (tmp_path / "mutual.ipynb").exists()
    with pytest.raises(ConfigError, match="chapters: 'factors' is none; choose from .*factor"):
        handout.write(tmp_path, ["factors"])


def test_a_library_without_a_book_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(handout, "BOOK", tmp_path)
    with pytest.raises(ConfigError, match="run this in a checkout"):
        handout.write(tmp_path / "out")


def test_a_hand_out_runs_by_itself_in_another_folder(tmp_path, monkeypatch):
    """Without the answers, beside no book, with the committed evidence."""
    monkeypatch.delenv("IEKD_RUNS")
    (path,) = handout.write(tmp_path, ["tables"])
    notebook = read(path)
    NotebookClient(
        notebook, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("IE-FT" in str(output.get("data", "")) for output in outputs)
