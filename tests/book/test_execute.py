"""Pages are executed side by side before the site is made, and kept as MyST-NB keeps them."""

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from jupyter_cache import get_cache

ROOT = Path(__file__).parents[2]


@pytest.fixture
def site(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "book" / "_ext"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return pytest.importorskip("iekd_site")


@pytest.fixture
def app(tmp_path):
    """A book of two pages that wait for each other, so that both must run at once."""
    for name, other in (("one", "two"), ("two", "one")):
        wait = (
            "import pathlib, time\n"
            f"pathlib.Path('{name}.txt').touch()\n"
            f"while not pathlib.Path('{other}.txt').exists(): time.sleep(0.05)\n"
            f"print('{name}')"
        )
        write(tmp_path / f"{name}.ipynb", wait)
    (tmp_path / "text.md").write_text("# No notebook")
    settings = {"execution_mode": "cache", "execution_cache_path": str(tmp_path / "cache")}
    values = {f"nb_{k}": v for k, v in {**settings, "execution_timeout": 60}.items()}
    return SimpleNamespace(srcdir=str(tmp_path), config=SimpleNamespace(**values))


def write(page: Path, *sources: str) -> None:
    made = [nbformat.v4.new_code_cell(source) for source in sources]
    made[-1].metadata["mystnb"] = {"figure": {"name": "fig"}}
    caption = nbformat.v4.new_markdown_cell("*About it.*", metadata={"tags": ["caption"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[*made, caption]), page)


def test_pages_run_side_by_side_and_once(site, app, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    site.execute(app, None, ["one", "text", "two"])
    cache = get_cache(app.config.nb_execution_cache_path)
    for name in ("one", "two"):
        record, run = cache.merge_match_into_notebook(
            site.on_site(Path(app.srcdir, f"{name}.ipynb"))
        )
        assert run.cells[0].outputs[0].text == f"{name}\n"
        assert cache.get_cache_record(record).data["execution_seconds"] > 0
    assert (
        site.not_cached(app.config.nb_execution_cache_path, Path(app.srcdir), ["one", "two"]) == []
    )


def test_every_page_that_fails_is_named_and_the_others_are_kept(site, app):
    write(Path(app.srcdir, "bad.ipynb"), "1 / 0")
    write(Path(app.srcdir, "worse.ipynb"), "import os; os._exit(1)")
    write(Path(app.srcdir, "good.ipynb"), "1")
    with pytest.raises(site.ExtensionError) as failed:
        site.execute(app, None, ["bad", "good", "worse"])
    assert "bad.ipynb: " in str(failed.value) and "ZeroDivisionError" in str(failed.value)
    assert "worse.ipynb: " in str(failed.value) and "good.ipynb" not in str(failed.value)
    cache = app.config.nb_execution_cache_path
    assert site.not_cached(cache, Path(app.srcdir), ["good"]) == []


def test_a_single_page_is_left_to_myst_nb_with_all_cores(site, app, monkeypatch):
    monkeypatch.delattr(site, "executed")
    site.execute(app, None, ["one", "text"])


def test_a_figure_may_move_to_an_earlier_page(site, tmp_path):
    """`git pull`, then `make book`: the site of before is there."""
    from sphinx.application import Sphinx

    book, built = tmp_path / "book", tmp_path / "built"
    book.mkdir()
    (book / "conf.py").write_text("")
    (book / "index.rst").write_text("Book\n====\n\n.. toctree::\n\n   a\n   b\n")
    with_label = ".. _figure-1:\n\nTitle\n=====\n\nText.\n"
    without = "Other\n=====\n\nText.\n"

    def told(a: str, b: str, forgets: bool = True) -> str:
        (book / "a.rst").write_text(a)
        (book / "b.rst").write_text(b)
        warnings = io.StringIO()
        app = Sphinx(book, book, built, built, "html", status=None, warning=warnings)
        if forgets:
            app.connect("env-before-read-docs", site.forget)
        app.build()
        return warnings.getvalue()

    assert "duplicate label" not in told(without, with_label)
    assert "duplicate label" not in told(with_label, without)
    told(without, with_label)
    assert "duplicate label" in told(with_label, without, forgets=False)  # Sphinx alone


@pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux only")
def test_a_forked_kernel_shows_figures_and_knows_nothing_of_ours(site, tmp_path):
    """It has matplotlib before a kernel can ask for pictures; a page has to import what it uses."""
    draw = (
        "import sys\n"
        "assert 'torch' in sys.modules and not {'iekd', 'matplotlib.pyplot'} & set(sys.modules)\n"
        "import matplotlib.pyplot as plt\n"
        "plt.subplots()[0]"
    )
    write(tmp_path / "page.ipynb", draw)
    notebook, _ = site.executed(tmp_path / "page.ipynb", 60)
    assert "image/png" in notebook.cells[0].outputs[0].data
