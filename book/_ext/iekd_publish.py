"""Publishing: one setting names the repository (`iekd_repository` in `_config.yml`, or the variable
IEKD_REPOSITORY, which the workflow `.github/workflows/pages.yml` sets).

With it a page has buttons (repository, suggest an edit, Binder, Colab), and the notebooks that the
site hands out begin with a cell that installs. Without it there are no such buttons and no such
cell. Colab opens notebooks from a branch only: they lie in `_build/colab`, which the workflow
pushes as the branch `colab`.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import nbformat
from sphinx.application import Sphinx
from sphinx.errors import ConfigError

BRANCH, NOTEBOOKS_BRANCH = "main", "colab"
ADDRESS = re.compile(r"https://[\w.-]+/[\w./-]+/[\w.-]+")
# Names begin with _: the check of a page's parameters leaves them alone.
FIRST_CELL = """\
# Installs the library where it is missing: in Colab, or on a machine without it.
import importlib.util as _util
import sys as _sys

if _util.find_spec("iekd") is None:
    !git clone -q --depth 1 {address} iekd-book
    %pip install -q ./iekd-book
    _sys.path.insert(0, "iekd-book")  # the checkout has the records, too"""


def repository(config) -> str:
    """The address of the repository, "" for none."""
    address = os.environ.get("IEKD_REPOSITORY", config.iekd_repository).rstrip("/")
    if address and not ADDRESS.fullmatch(address):
        raise ConfigError(
            f"iekd_repository: {address!r} is no address of a repository; write it as in "
            "https://github.com/owner/name, or leave it empty"
        )
    return address.removesuffix(".git")


def options(address: str) -> dict:
    """What the theme needs for its buttons; nothing without an address."""
    if not address:
        return {}
    launch = {"binderhub_url": "https://mybinder.org", "notebook_interface": "jupyterlab"}
    if address.startswith("https://github.com/"):
        launch["colab_url"] = "https://colab.research.google.com"
    return {
        "repository_url": address,
        "repository_branch": BRANCH,
        "path_to_docs": "book",
        "use_repository_button": True,
        "use_edit_page_button": True,
        "launch_buttons": launch,
    }


def name_repository(app: Sphinx, config) -> None:
    """Tell the theme where the repository is."""
    config.iekd_repository = repository(config)
    config.html_theme_options.update(options(config.iekd_repository))


def notebooks_of_branch(
    app: Sphinx, page: str, template: str, context: dict, doctree: object
) -> None:
    """Lead the Colab button to the notebook with the first cell."""
    for group in context.get("header_buttons", ()):
        for button in group.get("buttons", ()):
            if button["text"] == "Colab":
                sources, copies = f"/blob/{BRANCH}/book/", f"/blob/{NOTEBOOKS_BRANCH}/"
                button["url"] = button["url"].replace(sources, copies)


def with_first_cell(notebook: nbformat.NotebookNode, address: str) -> nbformat.NotebookNode:
    """The notebook with a cell below its title that installs the library."""
    cell = nbformat.v4.new_code_cell(FIRST_CELL.format(address=address), id="install")
    notebook.cells.insert(1, cell)
    return notebook


def hand_out(app: Sphinx, exception: Exception | None) -> None:
    """Write the notebooks for Colab, and those behind the button "download"."""
    colab = Path(app.outdir).parent / "colab"
    shutil.rmtree(colab, ignore_errors=True)
    address = app.config.iekd_repository
    if exception or app.builder.format != "html" or not address:
        return
    colab.mkdir()
    shutil.copytree(Path(app.srcdir) / "_static", colab / "_static")
    for source in sorted(Path(app.srcdir).glob("*.ipynb")):
        notebook = with_first_cell(nbformat.read(source, as_version=4), address)
        for copy in (colab / source.name, Path(app.outdir) / "_sources" / source.name):
            nbformat.write(notebook, copy)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_config_value("iekd_repository", "", "html", str)
    app.connect("config-inited", name_repository, priority=100)
    app.connect("html-page-context", notebooks_of_branch, priority=900)
    app.connect("build-finished", hand_out)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
