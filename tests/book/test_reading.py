"""A notebook reads the same on the site, in Jupyter and in a papermill output: sentences with
numbers come from code cells, and nothing in it is markup that only the site understands.
"""

import ast
import os
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import yaml
from tiny import made_up

from iekd.cli import handout
from iekd.config import grid
from iekd.records import Analysis

ROOT = Path(__file__).parents[2]
BOOK = ROOT / "book"
NOTEBOOKS = sorted(BOOK.glob("*.ipynb"))
ENTRY = re.compile(r"^@\w+\{[\w-]+,\n(.*?)^\}", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")
YEAR = re.compile(r"^(.+?)(?:,? et al\.| and .+?)?,? \(?(\d{4})\)?$", re.DOTALL)
HALVES = ("inherit", "explore")
# Of the library, beside its front door: what checks parameters, reads records and reports.
ROOMS = {"notebook", "records", "report"}

# What is measured on a student of photographs, as far as the page speaks of it.
MEASURED = [f"{what}_{half}" for what in ("relevance", "lost", "lost_random") for half in HALVES]
MEASURED += [f"left_{what}" for what in ("relevance", "cam", "centre", "random")]
MEASURED += [f"active_{what}" for what in ("all", "teacher", *HALVES)]

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path) -> list[nbformat.NotebookNode]:
    return nbformat.read(path, as_version=4).cells


def tags(cell: nbformat.NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def texts(source: str) -> Iterator[str]:
    """The texts in a code cell, values left out: what its sentences are made of."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "0" for part in node.values]
            yield "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def text(path: Path) -> str:
    """All text of a page, that of code cells too."""
    parts = []
    for cell in cells(path):
        parts += [cell.source] if cell.cell_type == "markdown" else texts(cell.source)
    return "\n\n".join(parts)


def links(path: Path) -> list[tuple[str, str]]:
    """Text and address of the links of a page, line breaks within the text taken out."""
    return [(" ".join(words.split()), address) for words, address in LINK.findall(text(path))]


@each_notebook
def test_nothing_is_left_that_only_the_site_understands(path):
    role = re.compile(r"\{[a-z]+(?::[a-z]+)*\}`")
    directive = re.compile(r"^(?:```+|:::+)\{|^\([\w-]+\)=$", re.MULTILINE)
    assert not role.findall(text(path)) and not directive.findall(text(path))
    assert not any("myst_nb" in cell.source or "glue(" in cell.source for cell in cells(path))


@each_notebook
def test_a_heading_has_something_below_it(path):
    """Cells are added in front of the one that a heading was written for."""
    lines: list[str] = []
    for cell in cells(path):
        fences = re.sub(r"^```.*?^```", "code", cell.source, flags=re.MULTILINE | re.DOTALL)
        told = fences.splitlines() if cell.cell_type == "markdown" else ["code"]
        lines += [line for line in told if line.strip()]
    for line, following in zip(lines, [*lines[1:], "# end"], strict=True):
        level, below = (len(each) - len(each.lstrip("#")) for each in (line, following))
        assert not level or not below or below > level, f"nothing below {line!r}"


@each_notebook
def test_equations_are_numbered_by_hand_within_the_page(path):
    source = text(path)
    numbers = re.findall(r"\\tag\{(\d+)\}", source)
    assert numbers == [str(k + 1) for k in range(len(numbers))]
    assert set(re.findall(r"[Ee]quation\s\((\d+)\)", source)) == set(numbers)
    # Sphinx sets a formula with \\ in an environment that allows no tag
    formulas = re.findall(r"\$\$(.*?)\$\$", source, re.DOTALL)
    assert not [formula for formula in formulas if "\\tag" in formula and "\\\\" in formula]


@each_notebook
def test_links_lead_to_pages_and_headings(path):
    headings = re.findall(r"^#+ (.*)", text(path), re.MULTILINE)
    anchors = {f"#{re.sub(r'[^a-z0-9]+', '-', title.lower()).strip('-')}" for title in headings}
    for _, address in links(path):
        if address.startswith("#"):
            assert address in anchors, address
        elif "{" not in address and not address.startswith(("http", "record:")):
            assert (BOOK / address).is_file(), address


def entries() -> list[tuple[str, str, str]]:
    """First author, year and address (arXiv before DOI, else the list of references)."""
    found = []
    for body in ENTRY.findall((BOOK / "references.bib").read_text(encoding="utf-8")):
        author = re.search(r"author\s*=\s*\{([^,]+)", body)[1]
        year = re.search(r"year\s*=\s*\{(\d{4})\}", body)[1]
        arxiv = re.search(r"arXiv:([\w./-]+)", body)
        doi = re.search(r"\b10\.\d{4,}/[^\s,}]+", body)
        paper = f"https://doi.org/{doi[0]}" if doi else "references.md"
        found.append((author, year, f"https://arxiv.org/abs/{arxiv[1]}" if arxiv else paper))
    return found


@each_notebook
def test_citations_are_those_of_the_bibliography(path):
    """Author, year and address; no address is invented."""
    known = entries()
    for words, address in links(path):
        if not address.startswith(("https://arxiv", "https://doi", "references.md")):
            continue
        author, year = YEAR.match(words).groups()
        assert (author, year, address) in known, (words, address)


@each_notebook
def test_what_is_no_story_is_folded_in_jupyter(path):
    """Sentences, and at most two cells that only compute for them."""
    hidden = [cell for cell in cells(path) if {"remove-input", "remove-cell"} & set(tags(cell))]
    assert all(cell.metadata["jupyter"]["source_hidden"] for cell in hidden)
    assert sum("remove-cell" in tags(cell) for cell in hidden) <= 2


@each_notebook
def test_captions_stand_below_their_figures(path):
    page = cells(path)
    for above, cell in zip(page, page[1:], strict=False):
        figure = above.metadata.get("mystnb", {}).get("figure", {})
        assert ("name" in figure) == ("caption" in tags(cell)), cell.source
        if "caption" in tags(cell):
            assert re.fullmatch(r"\*[^\n]+\*", cell.source), cell.source


@each_notebook
def test_an_exercise_is_a_task_a_check_a_place_to_write_and_a_solution(path):
    """The check stands folded above the place to write, which runs as it is: `...` are its dots.
    The solution has a right answer and two wrong ones; `iekd_site.answers` sees what is said.
    """
    page = cells(path)
    places = [k for k, cell in enumerate(page) if "exercise" in tags(cell)]
    assert [k + 1 for k in places] == [k for k, c in enumerate(page) if "solution" in tags(c)]
    for number, k in enumerate(places, 1):
        task, check, place, solution = page[k - 2 : k + 2]
        assert f"**{number}.** *About " in task.source and "<summary>Hint</summary>" in task.source
        assert {"check", "remove-input"} <= set(tags(check))
        (name,) = re.findall(r"@notebook\.exercise\ndef (check_\w+)\(", check.source)
        assert "..." in place.source and f"\n{name}(" in f"\n{place.source}"
        assert len(re.findall(rf"^ *{name}\(", solution.source, re.MULTILINE)) >= 3


def test_a_chapter_asks_three_quick_questions_before_its_exercises():
    """Plain HTML: no script, and no Markdown in the question."""
    for name in handout.chapters():
        sources = [cell.source for cell in cells(BOOK / f"{name}.ipynb")]
        (k,) = [k for k, text in enumerate(sources) if text.startswith("## Quick questions")]
        questions = re.findall(r"^<details><summary>([^`$*\n]+)</summary>\n\n", sources[k], re.M)
        assert len(questions) == 3 and sources[k + 1].startswith("## Exercises"), name


def imported(source: str) -> Iterator[str]:
    """The modules of the library that a cell imports, without the front door."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "iekd":
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from names if node.module == "iekd" else [node.module]


@each_notebook
def test_a_chapter_imports_the_front_door_and_three_rooms(path):
    code = [c for c in cells(path) if c.cell_type == "code" and "solution" not in tags(c)]
    found = {name for cell in code for name in imported(cell.source)}
    assert found <= {f"iekd.{room}" for room in ROOMS}


# ---------------------------------------------------------------------- what a class sees


@pytest.fixture
def site(monkeypatch):
    monkeypatch.syspath_prepend(str(BOOK / "_ext"))
    return pytest.importorskip("iekd_site")


def test_what_a_page_should_not_show(site):
    shown = "<p>As {doc}<code>tables</code> says, {seeds} seeds and nan points.</p>"
    assert site.unread(shown) == ["nan", "{doc}", "{seeds}"]
    formula = r'<span class="math notranslate">\(\hat{x}\)</span> and $\hat{y}$ or $$\hat{z}$$'
    code = '<pre>f"{seeds}"</pre><code>{a}</code><script>{b}</script><a href="{c}">nan-free</a>'
    frame = '<table border="1" class="dataframe"><td>NaN</td></table>'
    assert site.unread(formula + code + frame) == []


def test_captions_on_the_site(site):
    figure = {"metadata": {"mystnb": {"figure": {"name": "fig-a"}}}, "source": "fig"}
    caption = {"metadata": {"tags": ["caption"]}, "source": ["*Points\n", "are seeds.*"]}
    text = {"metadata": {}, "source": "As it stands."}
    first, second = site.site_cells([figure, caption, text])
    assert first["metadata"]["mystnb"]["figure"]["caption"] == "Points\nare seeds."
    assert second == text


def test_the_site_says_how_long_a_chapter_took(site):
    text = '<a href="status.html"><span>The live cells take a while</span></a>\nthe first time.'
    told = '<a href="status.html"><span>The live cells took 35 seconds</span></a> when this site'
    assert site.with_time(text, 34.6) == f"{told} was built."
    assert "took 2.5 minutes<" in site.with_time(text, 150.0)


def test_the_table_of_times_has_the_pages_that_ran_in_the_order_of_the_book(site):
    """Pages without cells are not in it; the phrase that it replaces stands in two pages."""
    times = {"index": 7.6, "b": 90.2, "a": 3.0}
    env = SimpleNamespace(
        nb_metadata={page: {"exec_data": {"runtime": took}} for page, took in times.items()},
        config=SimpleNamespace(root_doc="index"),
        toctree_includes={"index": ["b", "text", "a"]},
        titles={page: SimpleNamespace(astext=lambda page=page: f"On {page}") for page in times},
    )
    context = {"body": f"<h2>Times</h2>\n{site.TIMES}"}
    site.say_time(SimpleNamespace(env=env), "times", "", context, None)
    told = re.findall(r'href="(\w+)\.html">On \w+</a></th><td>(\d+)<', context["body"])
    assert told == [("index", "8"), ("b", "90"), ("a", "3")]
    said = site.TIMES.removeprefix("<p>").removesuffix("</p>")
    pages = [page for page in BOOK.glob("*.ipynb") if said in page.read_text(encoding="utf-8")]
    assert sorted(page.stem for page in pages) == ["lesson-plans", "status"]


def test_what_an_exercise_should_not_say(site):
    def page(tag, *lines):
        output = {"output_type": "stream", "text": [f"{line}\n" for line in lines]}
        return {"cells": [{"metadata": {"tags": [tag]}, "outputs": [output]}]}

    right, wrong, nothing = "Right: so.", "Not yet: no.", "Nothing to check yet: replace the dots."
    good = [("exercise", nothing), ("solution", right, wrong, wrong, "more"), ("other", "text")]
    assert not any(site.answers(page(*said)) for said in good)
    bad = [("exercise", wrong), ("exercise", ""), ("solution", right, wrong)]
    bad += [("solution", wrong, right, wrong), ("solution", right, right, wrong, wrong)]
    assert all(len(site.answers(page(*said))) == 1 for said in bad)


def test_a_sentence_should_not_begin_a_list(site):
    def page(text):
        shown = nbformat.v4.new_output("display_data", {"text/markdown": text})
        return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("", outputs=[shown])])

    good = [
        "starts at seed 0.\n",
        "Two:\n\n1. one\n2. two\n\nMore",
        "by\n0.48. If",
        "(it has\n32).",
    ]
    assert not any(site.broken_sentences(page(text)) for text in good)
    bad = ["* starts at seed\n  0.\n* next", "1,024 values become\n512.", "of\n50. The 500 of\nFT"]
    assert all(len(site.broken_sentences(page(text))) == 1 for text in bad)


def test_answers_are_those_of_the_execution_whenever_that_was(site, tmp_path):
    """The cache keeps them; a second build executes nothing."""
    from jupyter_cache import get_cache
    from jupyter_cache.base import CacheBundleIn

    v4 = nbformat.v4
    figure = v4.new_code_cell("fig", metadata={"mystnb": {"figure": {"name": "fig-a"}}})
    caption = v4.new_markdown_cell("*Points.*", metadata={"tags": ["caption"]})
    asked = v4.new_code_cell("check(...)", metadata={"tags": ["exercise"]})
    page = v4.new_notebook(cells=[figure, caption, asked])
    nbformat.write(page, tmp_path / "page.ipynb")
    (tmp_path / "text.md").write_text("# No notebook")
    cache = str(tmp_path / "cache")
    assert site.misread(cache, tmp_path, ["page", "text"]) == ["page.ipynb: an exercise says ''"]

    # executed, as the site sees it
    run = nbformat.from_dict({**page, "cells": site.site_cells(page["cells"])})
    said = v4.new_output("stream", text="Nothing to check yet: replace the dots.\n")
    run.cells[-1]["outputs"] = [said]
    run.cells[-1]["execution_count"] = 1
    bundle = CacheBundleIn(run, "page.ipynb")
    get_cache(cache).cache_notebook_bundle(bundle, check_validity=False)
    assert site.misread(cache, tmp_path, ["page", "text"]) == []


# Cheap ones: a page of sentences without any record, and a live chapter with other parameters.
EXECUTED = [
    ("protocol", {"preset": "paper", "seeds": 5}, "can detect with 5 seeds"),
    (
        "teacher-and-student",
        {"seeds": 2, "epochs": 1, "kd_temperature": 1.0, "train_images": 60},
        "no interval, 2 pairs",
    ),
]


def executed(site, monkeypatch, stem, values) -> str:
    """The text of a page that was executed with these parameters; it reads well."""
    papermill, nbconvert = pytest.importorskip("papermill"), pytest.importorskip("nbconvert")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    page = papermill.execute_notebook(BOOK / f"{stem}.ipynb", None, values, progress_bar=False)
    shown, _ = nbconvert.HTMLExporter(exclude_input=True).from_notebook_node(page)
    assert site.unread(shown) == []
    assert site.answers(page) == [] and site.broken_sentences(page) == []
    return " ".join(unescape(re.sub(r"<[^>]*>", "", shown)).split())


@pytest.mark.parametrize(("stem", "values", "sentence"), EXECUTED)
def test_an_executed_chapter_has_its_sentences(site, monkeypatch, stem, values, sentence):
    assert sentence in executed(site, monkeypatch, stem, values)


PHOTOGRAPHS = """
base: {preset: class, dataset: imagenette, epochs: 29, seed: 100..103}
runs:
  - {method: [supervised, ie-ft]}
  - {method: ie-ft, explore: none}
  - {method: ie-ft, explore_target: shuffled}
"""


def test_an_executed_page_is_read_however_far_its_grid_has_come(site, monkeypatch, tmp_path):
    """A first seed, and a teacher's values that differ in their last digits, had stopped it."""
    (tmp_path / "photographs.yaml").write_text(PHOTOGRAPHS)
    configs = grid.read(tmp_path / "photographs.yaml")
    alone = [config for config in configs if config.method == "supervised"]
    stages = {
        "IE-FT and its two rivals have not all been analysed yet": alone,
        "has not yet been tested against that with inheritance only": configs[:4],  # all of a seed
        "of its teacher's active neurons (90 % interval": configs,
    }
    for sentence, finished in stages.items():
        for k, config in enumerate(finished):
            record = made_up(config, 30 + config.seed % 7 + k % 3)
            record.save()
            values = {name: 0.01 * (k + i) for i, name in enumerate(MEASURED, 1)}
            made = {"parents": {}, "git": {}, "versions": {}, "noise": {}, "metrics": values}
            made["answers"] = {"student": "..1.", "teacher": ".2.."}
            Analysis(hash=record.hash, weights=record.weights, **made).save(config)
        values = {"seeds": 2, "grid": str(tmp_path / "photographs.yaml")}
        assert sentence in executed(site, monkeypatch, "looks", values)


@each_notebook
def test_no_page_lists_the_scales_by_heart(path):
    """One that named class and paper showed no run of desk scale, and its links led nowhere."""
    for cell in cells(path):
        assert '["class", "paper"]' not in cell.source, "iekd.config.presets.EVIDENCE has them"


def test_every_chapter_is_a_lesson():
    toc = yaml.safe_load((BOOK / "_toc.yml").read_text(encoding="utf-8"))
    chapters = {page["file"] for page in toc["parts"][0]["chapters"]}
    lessons = (BOOK / "teach.md").read_text(encoding="utf-8")
    plans = (BOOK / "lesson-plans.ipynb").read_text(encoding="utf-8")
    assert chapters - set(re.findall(r"^\| \{doc\}`([\w-]+)` \|", lessons, re.M)) == set()
    assert chapters - set(re.findall(r"## \[.+?\]\(([\w-]+)\.ipynb\)", plans)) == set()
