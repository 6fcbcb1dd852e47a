"""One setting names the repository: with it pages have buttons and notebooks a first cell that
installs; without it they have neither.
"""

from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import yaml
from IPython.core.inputtransformer2 import TransformerManager

ROOT = Path(__file__).parents[2]
ADDRESS = "https://github.com/owner/name"


@pytest.fixture
def publish(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "book" / "_ext"))
    monkeypatch.delenv("IEKD_REPOSITORY", raising=False)
    return pytest.importorskip("iekd_publish")


@pytest.fixture
def app(tmp_path):
    """A build of a book of one notebook; its theme has settings of its own."""
    (tmp_path / "book" / "_static").mkdir(parents=True)
    (tmp_path / "book" / "_static" / "drawing.svg").write_text("<svg/>")
    (tmp_path / "_build" / "html" / "_sources").mkdir(parents=True)
    cells = [nbformat.v4.new_markdown_cell("# Title"), nbformat.v4.new_code_cell("seed = 1")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "book" / "page.ipynb")
    config = SimpleNamespace(iekd_repository="", html_theme_options={"own": 1})
    folders = {"srcdir": tmp_path / "book", "outdir": tmp_path / "_build" / "html"}
    return SimpleNamespace(config=config, builder=SimpleNamespace(format="html"), **folders)


def handed_out(app: SimpleNamespace) -> list[Path]:
    return [file for file in app.outdir.parent.rglob("*") if file.is_file()]


def test_without_a_repository_there_is_nothing(publish, app):
    publish.name_repository(app, app.config)
    publish.hand_out(app, None)
    assert app.config.html_theme_options == {"own": 1} and handed_out(app) == []


def test_the_book_itself_names_none():
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    assert config["sphinx"]["config"]["iekd_repository"] == ""
    assert not {"repository", "launch_buttons"} & set(config)
    assert not [name for name in config["html"] if name.startswith("use_") and "button" in name]


@pytest.mark.parametrize("by_variable", [False, True])
def test_with_a_repository_all_follows_from_it(publish, app, monkeypatch, by_variable):
    if by_variable:
        app.config.iekd_repository = "https://github.com/some/other"
        monkeypatch.setenv("IEKD_REPOSITORY", f"{ADDRESS}.git")
    else:
        app.config.iekd_repository = f"{ADDRESS}/"
    publish.name_repository(app, app.config)
    theme = app.config.html_theme_options
    assert theme["repository_url"] == ADDRESS and theme["path_to_docs"] == "book"
    assert theme["use_edit_page_button"] and theme["use_repository_button"]
    assert {"binderhub_url", "colab_url"} <= set(theme["launch_buttons"])

    publish.hand_out(app, None)
    notebooks = [nbformat.read(f, 4) for f in handed_out(app) if f.suffix == ".ipynb"]
    assert len(notebooks) == 2
    for notebook in notebooks:
        title, first, *_ = [cell.source for cell in notebook.cells]
        assert title == "# Title" and f"git clone -q --depth 1 {ADDRESS} " in first
    assert (app.outdir.parent / "colab" / "_static" / "drawing.svg").is_file()

    # a later build without it takes them away
    app.config.iekd_repository = ""
    publish.hand_out(app, None)
    assert not (app.outdir.parent / "colab").exists()


def test_colab_opens_only_what_is_on_github(publish):
    assert "colab_url" not in publish.options("https://gitlab.com/a/b")["launch_buttons"]


@pytest.mark.parametrize("address", ["owner/name", "git@github.com:owner/name.git", "https://x"])
def test_what_is_no_address_is_refused(publish, app, address):
    app.config.iekd_repository = address
    with pytest.raises(Exception, match="https://github.com/owner/name"):
        publish.name_repository(app, app.config)


def test_the_colab_button_leads_to_the_branch_of_the_notebooks_that_install(publish):
    page = "https://colab.research.google.com/github/owner/name/blob/main/book/page.ipynb"
    other = {"text": "Binder", "url": "https://mybinder.org/v2/gh/owner/name/main"}
    group = {"buttons": [{"text": "Colab", "url": page}, dict(other)]}
    publish.notebooks_of_branch(None, "page", "", {"header_buttons": [{"url": "x"}, group]}, None)
    assert group["buttons"][0]["url"].endswith("/owner/name/blob/colab/page.ipynb")
    assert group["buttons"][1] == other


def test_the_first_cell_does_nothing_where_the_library_is(publish):
    code = TransformerManager().transform_cell(publish.FIRST_CELL.format(address=ADDRESS))
    assert "git clone" in code
    names: dict = {}
    exec(code, names)  # get_ipython() would be a NameError
    assert all(name.startswith("_") for name in names)


def test_the_workflow_builds_strictly_publishes_and_names_its_own_repository(publish):
    text = (ROOT / ".github" / "workflows" / "pages.yml").read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    assert workflow["env"]["IEKD_REPOSITORY"] == "${{ github.server_url }}/${{ github.repository }}"
    jobs = workflow["jobs"]
    steps = [step.get("run") or step["uses"] for step in jobs["build"]["steps"]]
    assert steps.index("make site") < steps.index("make browse")
    assert steps.index("make browse") < steps.index("actions/upload-pages-artifact@v3")
    assert jobs["deploy"]["permissions"] == {"pages": "write", "id-token": "write"}
    assert jobs["colab"]["permissions"] == {"contents": "write"}
    assert publish.NOTEBOOKS_BRANCH in jobs["colab"]["steps"][-1]["run"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "site: book " in makefile and " -W -n --keep-going" in makefile
