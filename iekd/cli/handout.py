"""Chapters for a class: notebooks without solutions, with a cell to write in below each exercise.

They are read in plain Jupyter, without the book around them: links lead to chapters of the same
hand-out, to the web, or nowhere; pictures are included.
"""

import copy
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import nbformat
import yaml
from nbformat import NotebookNode

from iekd.checkout import ROOT
from iekd.errors import ConfigError

BOOK = ROOT / "book"
# Markdown that links to a page of the book, or shows one of its pictures.
LINK = re.compile(r"\[([^][]+)\]\(([\w-]+)\.(?:ipynb|md)(?:#[^)\s]*)?\)")
PICTURE = re.compile(r"!\[[^][]*\]\((_static/[^)\s]+)\)")
PLACE = "# Your answer\n"


def chapters() -> list[str]:
    """The pages of the book's first part that have exercises.

    Raises `ConfigError` if there is no book.
    """
    contents = BOOK / "_toc.yml"
    if not contents.exists():
        raise ConfigError(
            "the book is not installed with the library; run this in a checkout of it"
        )
    part = yaml.safe_load(contents.read_text(encoding="utf-8"))["parts"][0]
    names = [chapter["file"] for chapter in part["chapters"]]
    return [name for name in names if any(map(is_solution, _read(name).cells))]


def write(folder: Path, names: Sequence[str] = (), solutions: bool = False) -> list[Path]:
    """Write chapters, by default all, into a folder; with `solutions`, for the teacher.

    Raises `ConfigError` for a chapter that does not exist, and for a file that already exists: it
    may hold a student's work.
    """
    known = chapters()
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"chapters: {unknown[0]!r} is none; choose from {', '.join(known)}")
    chosen = [name for name in known if name in names or not names]
    places = {name: folder / f"{name}.ipynb" for name in chosen}
    if there := [place for place in places.values() if place.exists()]:
        raise ConfigError(f"{there[0]} already exists and may hold work; choose another folder")

    folder.mkdir(parents=True, exist_ok=True)
    for name, place in places.items():
        notebook = handout(_read(name), chosen, solutions)
        for picture in _pictures(notebook):
            (folder / picture).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(BOOK / picture, folder / picture)
        nbformat.write(notebook, place)
    return list(places.values())


def handout(notebook: NotebookNode, chosen: Sequence[str], solutions: bool = False) -> NotebookNode:
    """A chapter as handed out; `chosen` are the chapters that come with it."""
    made = copy.deepcopy(notebook)
    made.cells = list(_cells(made, solutions))
    for cell in made.cells:  # sentences with numbers are code
        cell.source = LINK.sub(lambda link: link[0 if link[2] in chosen else 1], cell.source)
    return made


def is_solution(cell: NotebookNode) -> bool:
    """Whether a cell answers an exercise."""
    return "solution" in cell.metadata.get("tags", [])


def _cells(notebook: NotebookNode, solutions: bool) -> Iterator[NotebookNode]:
    """The cells, with an empty one in place of a solution unless the chapter has one to fill in."""
    before: NotebookNode | None = None
    for cell in notebook.cells:
        if not is_solution(cell):
            yield cell
        elif solutions:
            cell.metadata.pop("jupyter", None)  # unfolded
            yield cell
        elif before is not None and before.cell_type == "markdown":
            yield nbformat.v4.new_code_cell(PLACE, id=cell.id, metadata={"tags": ["exercise"]})
        before = cell


def _pictures(notebook: NotebookNode) -> set[str]:
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    return {picture for text in texts for picture in PICTURE.findall(text)}


def _read(name: str) -> NotebookNode:
    return nbformat.read(BOOK / f"{name}.ipynb", as_version=4)
