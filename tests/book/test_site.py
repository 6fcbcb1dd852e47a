"""The book's sources keep their promises. Nothing is built here: that is `make book`."""

import ast
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml

ROOT = Path(__file__).parents[2]
BOOK = ROOT / "book"
NOTEBOOKS = sorted(BOOK.glob("*.ipynb"))
PARAMETER_LINE = re.compile(r"\w+: (int|float|str|bool) = .+?  # \S.*")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str = "code") -> list[dict[str, Any]]:
    """The notebook's cells of one kind."""
    return [
        cell
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == kind
    ]


def parameter_cells(path: Path) -> list[str]:
    """Sources of the cells tagged `parameters`."""
    return [
        "".join(c["source"]) for c in cells(path) if "parameters" in c["metadata"].get("tags", [])
    ]


def toc_files(node: Any) -> Iterator[str]:
    """Every page that the table of contents names."""
    if isinstance(node, dict):
        yield from (value for key, value in node.items() if key in ("root", "file"))
    for child in (
        node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    ):
        yield from toc_files(child)


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_table_of_contents_and_folder_agree():
    named = list(toc_files(yaml.safe_load((BOOK / "_toc.yml").read_text(encoding="utf-8"))))
    pages = [path.stem for path in BOOK.iterdir() if path.suffix in (".md", ".ipynb")]
    assert sorted(named) == sorted(pages)


@each_notebook
def test_one_parameters_cell_of_documented_typed_lines(path):
    (source,) = parameter_cells(path)
    lines = [line for line in source.splitlines() if line.strip()]
    assert lines and all(PARAMETER_LINE.fullmatch(line) for line in lines), source


@each_notebook
def test_defaults_have_their_type(path):
    for node in ast.parse(parameter_cells(path)[0]).body:
        default = ast.literal_eval(node.value)
        assert type(default).__name__ == node.annotation.id, ast.unparse(node)


@each_notebook
def test_papermill_sees_every_parameter(path):
    from papermill import inspect_notebook

    seen = inspect_notebook(str(path))
    for node in ast.parse(parameter_cells(path)[0]).body:
        found = seen[node.target.id]
        assert found["inferred_type_name"] == node.annotation.id and found["help"], found


@each_notebook
def test_the_file_is_a_valid_notebook(path):
    nbformat.validate(
        nbformat.read(path, as_version=nbformat.NO_CONVERT)
    )  # what Jupyter and papermill do, where it is only a warning


@each_notebook
def test_outputs_are_stripped(path):
    assert not [
        cell for cell in cells(path) if cell["outputs"] or cell["execution_count"] is not None
    ]


@each_notebook
def test_starts_with_its_title(path):
    first = json.loads(path.read_text(encoding="utf-8"))["cells"][0]
    assert first["cell_type"] == "markdown" and "".join(first["source"]).startswith("# ")


@each_notebook
def test_figures_have_a_description(path):
    settings = [cell["metadata"].get("mystnb", {}) for cell in cells(path)]
    assert all(s.get("image", {}).get("alt") for s in settings if "figure" in s or "image" in s)


@pytest.fixture
def site(tmp_path, monkeypatch):
    """site(html) -> the problems of a page of one notebook that promises the figures fig-one and
    fig-two.
    """
    monkeypatch.syspath_prepend(str(BOOK / "_ext"))
    iekd_site = pytest.importorskip("iekd_site")
    options = [
        {"caption": "c", "name": "fig-one"},
        {"caption": "c"},
        {"caption": "c", "name": "fig-two"},
    ]
    cells = [
        {"cell_type": "code", "metadata": {"mystnb": {"figure": figure}}} for figure in options
    ]
    (tmp_path / "page.ipynb").write_text(
        json.dumps({"cells": [*cells, {"metadata": {}}]}), encoding="utf-8"
    )
    (tmp_path / "a b.png").write_bytes(b"x")

    def problems(html):
        (tmp_path / "page.html").write_text(html, encoding="utf-8")
        return iekd_site.problems(tmp_path, ["page"], tmp_path)

    return problems


def test_a_captioned_figure_without_a_picture_is_a_problem(site):
    first = '<figure class="a" id="fig-one">\n<img alt="x" src="a%20b.png"/><figcaption>c</figcaption></figure>'
    second = first.replace("fig-one", "fig-two")
    assert site(first + second) == []
    lacking = ["page.html: fig-two has a caption and no picture; its cell must return a figure"]
    assert site(first) == lacking
    assert site(first + "<pre>&lt;Figure size 792x418 with 1 Axes&gt;</pre>") == lacking
    assert site(first + second.replace("a%20b.png", "gone.png")) == lacking
    assert site(first + '<figure id="fig-two"><pre>text</pre></figure>') == lacking
    assert site(first + '<div id="fig-two"><img src="a%20b.png"/></div>') == lacking
    assert len(site("")) == 2


def test_a_picture_that_nobody_describes_is_a_problem(site):
    name, figure = "_images/0a1b.png", '<figure id="fig-{}"><img alt="x" src="a%20b.png"/></figure>'
    figures = figure.format("one") + figure.format("two")
    said = f"page.html: {name} has no description; mystnb.image.alt of its cell says it"
    assert site(f'{figures}<img alt="{name}" src="{name}"/>') == [said]
    assert site(f'{figures}<img alt="Two curves." src="{name}"/><img alt="" src="x.svg"/>') == []


def test_a_link_to_a_place_that_no_page_has_is_a_problem(site, tmp_path):
    (tmp_path / "page.ipynb").write_text('{"cells": []}')
    (tmp_path / "other.html").write_text('<p id="a&amp;b">', encoding="utf-8")
    dead = "page.html: links to {}: no such place"
    here = '<p id="here"><a href="#here">1</a><a href="other.html#a%26b">2</a>'
    assert site(here + '<a href="https://x.org/y.html#z">3</a><a href="other.html">4</a>') == []
    assert site(here + '<a href="other.html#gone">') == [dead.format("other.html#gone")]
    assert site(here + '<a class="x" href="#gone">') == [dead.format("page.html#gone")]
    assert site(here + '<a href="none.html#here">') == [dead.format("none.html#here")]


@each_notebook
def test_solutions_are_folded_on_the_site_and_in_jupyter_and_can_be_taken_out(path):
    below, solutions = False, []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "markdown":
            for title in re.findall(r"^## (.*)", "".join(cell["source"]), re.MULTILINE):
                below = title == "Exercises"
        tags = cell["metadata"].get("tags", [])
        wanted = (
            {"solution", "exercise", "check"} if below and cell["cell_type"] == "code" else set()
        )
        assert bool(wanted & set(tags)) == bool(wanted), "".join(cell["source"])
        solutions += [cell["metadata"]] if "solution" in tags else []
    assert all(
        "hide-cell" in found["tags"] and found.get("jupyter", {}).get("source_hidden")
        for found in solutions
    )


@pytest.mark.parametrize(
    "page", ["tables", "ablations", "methods", "mutual", "small-teacher", "analysis", "speed"]
)
def test_every_table_of_results_has_its_data_and_its_command(page):
    """`tables.grid_html`, `paper.paper_html` and `verdicts.board_html` bring them along; a table
    that a page makes itself names them.
    """
    sources = ["".join(cell["source"]) for cell in cells(BOOK / f"{page}.ipynb")]
    calls = [
        node
        for source in sources
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
    ]
    named = [(ast.unparse(call.func).removeprefix("report."), call) for call in calls]
    framed = [call for name, call in named if name == "html.table"]
    feet = [call for name, call in named if name == "tables.foot"]
    assert all("foot" in {keyword.arg for keyword in call.keywords} for call in framed)
    assert all(len(call.args) >= 3 for call in feet) and bool(feet) == bool(framed)
    assert framed or {"tables.grid_html", "paper.paper_html"} & {name for name, _ in named}


def test_conda_environment_is_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python, _, packages = environment["dependencies"]
    assert environment["name"] == project()["name"]
    assert python == "python" + project()["requires-python"]
    # the packages come through pip from pyproject.toml itself, with every extra a reader or a
    # developer needs
    assert packages == {"pip": [f"-e .[{','.join(project()['optional-dependencies'])}]"]}


def test_pre_commit_installs_what_make_check_uses():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][
        0
    ]["hooks"]
    wanted = {package for hook in hooks for package in hook["additional_dependencies"]}
    assert wanted <= set(project()["optional-dependencies"]["dev"])


def test_readme_has_room_for_the_generated_table():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.search(r"<!-- headline:start -->\n(.*\n)*?<!-- headline:end -->", readme)


def test_readme_pictures_and_links_exist():
    links = re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert all(
        link.startswith("https://") or (ROOT / link.partition("#")[0]).exists() for link in links
    ), links
