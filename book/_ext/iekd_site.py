"""What Jupyter Book does not do by itself for this site; loaded by `local_extensions` in
`_config.yml`.

1. Outputs depend on the library and the records, not only on the notebook: the execution cache is
  named after a digest. What it lacks is executed side by side before Sphinx reads; MyST-NB
  alone would execute one page after another.
2. The site works without network: MathJax comes from the package `sphinx-mathjax-offline`.
3. So does the explorer: the script that draws it comes from the package `vl-convert-python`.
4. The records lie in the site under `records/`, so that every table can link to them.
5. What is ordinary text in Jupyter and more on the site: a cell with the tag `caption` is the
  caption of the figure above it.
6. A chapter that says "The live cells take a while" says on the site how long they took, and where
  a page speaks of the table of these times, there it is.
7. Jupyter Book brings a script for kernels on foreign hosts; no page gets it.
8. The build fails on a page that loads from a foreign host, links to a missing record or a place
  that no page has, or is larger than 1 MB; on one with a raw role, an unfilled placeholder or "nan"
  in its text; on one with a picture that has no description; on one whose captioned figure has no
  picture: MyST-NB then prints what the cell returned and drops the caption without a word; and on
  one where an exercise's check says "right" to a wrong answer, or the other way round.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from html import unescape
from importlib.metadata import distribution, distributions
from pathlib import Path
from urllib.parse import unquote

import nbformat
import vl_convert
from iekd_kernels import ForkedKernels
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from jupyter_cache.executors.utils import single_nb_execution
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError
from sphinx.util import logging

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "runs" / "records"
MATHJAX_FILES = ("tex-chtml.js", "input/tex/extensions/*.js", "output/chtml/fonts/woff-v2/*.woff")
MAX_PAGE_BYTES = 1_000_000
MAX_KERNELS = 4  # each holds PyTorch; more than the longest page would not make it faster
# What starts them.
STARTED_BY = {"kernel_manager_class": ForkedKernels} if sys.platform == "linux" else {}

# What a browser fetches without being asked. Plain links (<a href>) are the reader's own choice.
FOREIGN = re.compile(
    r"<(?:script|img|iframe|source|video|audio|embed)\b[^>]*?\bsrc=\"((?:https?:)?//[^\"]+)", re.I
)
FOREIGN_LINK = re.compile(
    r"<link\b(?![^>]*rel=\"(?:canonical|license)\")[^>]*?\bhref=\"((?:https?:)?//[^\"]+)", re.I
)
RECORD_LINK = re.compile(r"href=\"(?:\./)?(records/[^\"#?<]+)\"")
PAGE_LINK = re.compile(r"href=\"([\w-]+\.html)?#([^\"<]+)\"")
PLACE = re.compile(r"\bid=\"([^\"]+)\"")
FIGURE = re.compile(r"<figure\b[^>]*?\bid=\"([^\"]+)\"[^>]*>(.*?)</figure>", re.S)
PICTURE = re.compile(r"<img\b[^>]*?\bsrc=\"([^\"]+)\"")
# What MyST-NB says of a picture that nobody describes: the name of its file.
UNDESCRIBED = re.compile(r"<img\b[^>]*?\balt=\"(_images/[^\"]+)\"")
# What is no running text: scripts, code, formulas (in Jupyter's pages between dollar signs), frames
# that pandas shows, tags.
NO_TEXT = re.compile(
    r"<(script|style|pre|code|svg|title)\b.*?</\1>|<span class=\"math[^>]*>.*?</span>"
    r"|<div class=\"math[^>]*>.*?</div>|<table[^>]*class=\"dataframe\".*?</table>"
    r"|\$\$.*?\$\$|\$[^$\n][^$]*?\$|<[^>]*>",
    re.S,
)
# What a chapter says of its time, with a link to the table of all times.
A_WHILE = re.compile(r"The live cells take a while((?:</\w+>)+)\s+the first time")
# What a page says in Jupyter where the site has that table.
TIMES = "<p>The table of these times stands here on the site.</p>"
# A line that Jupyter takes for an item of a list.
NUMBERED = re.compile(r"^ *\d+[.)](?: .*)?$", re.MULTILINE)
# A role that nobody read ({doc}), a value that nobody filled in ({seeds}), and what is no number.
UNREAD = re.compile(r"\{[a-z_][^{}<>\n]*\}|\b(?:nan|NaN)\b(?!-)")


def inputs_digest() -> str:
    """Twelve hexadecimal digits of everything outside a notebook that can change its outputs.

    Smoke records are left out: the notebooks' live cells write them during the build.
    """
    runs = [
        path
        for path in (ROOT / "runs").rglob("*")
        if path.suffix in (".yaml", ".json") and "cache" not in path.parts
    ]
    found = [*(ROOT / "iekd").rglob("*.py"), *runs]
    files = sorted(f for f in found if not f.is_relative_to(RECORDS / "smoke"))
    packages = sorted(f"{d.name}=={d.version}" for d in distributions())
    digest = hashlib.sha256("\n".join([sys.version, *packages]).encode())
    for file in files:
        digest.update(
            f"{file.relative_to(ROOT)}\0".encode() + hashlib.sha256(file.read_bytes()).digest()
        )
    return digest.hexdigest()[:12]


def choose_cache(app: Sphinx, config) -> None:
    """Use the execution cache of today's inputs and drop the others. A new value makes Sphinx read
    every page again.
    """
    caches = Path(app.outdir).parent / ".jupyter_cache"
    cache = caches / inputs_digest()
    for stale in caches.glob("*"):
        if stale != cache:
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
    config.nb_execution_cache_path = str(cache)
    # sphinx-external-toc 1.1 fails on pages kept from a build with another table of contents
    # (KeyError)
    config.iekd_toc = Path(config.external_toc_path or Path(app.srcdir) / "_toc.yml").read_text(
        encoding="utf-8"
    )


def not_cached(cache: str, source: Path, docs: Iterable[str]) -> list[Path]:
    """The notebooks of these pages that the cache does not hold; what takes longest first: those
    that say so, then the largest.
    """
    found = []
    for page in (source / f"{doc}.ipynb" for doc in docs):
        try:
            page.is_file() and get_cache(cache).match_cache_notebook(on_site(page))
        except KeyError:
            found.append(page)
    takes_a_while = {page for page in found if A_WHILE.search(page.read_text(encoding="utf-8"))}
    return sorted(found, key=lambda page: (page not in takes_a_while, -page.stat().st_size))


def forget(app: Sphinx, env: BuildEnvironment, docs: list[str]) -> None:
    """Before any page is read anew, what all of them said: Sphinx forgets one page at a time, and
    takes a figure that has moved to an earlier page for a second one.
    """
    for name in docs:
        app.events.emit("env-purge-doc", env, name)
        env.clear_doc(name)


def execute(app: Sphinx, env: object, docs: list[str]) -> None:
    """Execute the pages that need it side by side and put them into the cache, where MyST-NB finds
    them. The build fails with the name of every page that fails.
    """
    cache, start = app.config.nb_execution_cache_path, time.perf_counter()
    pages = not_cached(cache, Path(app.srcdir), docs)
    if app.config.nb_execution_mode != "cache" or len(pages) < 2:
        return  # MyST-NB does it, with all cores for the one page

    # several threads each would wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # one more than cores, for a kernel waits while it starts and ends
    kernels = min((os.cpu_count() or 1) + 1, MAX_KERNELS)
    logger.info("Executing %d pages, %d at a time", len(pages), kernels)
    seconds, failed = 0.0, []
    with ThreadPoolExecutor(kernels) as pool:
        limit = app.config.nb_execution_timeout
        started = {pool.submit(executed, page, limit): page for page in pages}
        for done in as_completed(started):
            name = started[done].name
            try:
                seconds += keep(cache, started[done], done)
            except Exception as error:  # whatever stops a kernel; all pages at fault are named
                failed.append(f"{name}: {error}")
    wall = time.perf_counter() - start
    logger.info("Executed in %.0f s; one after another: %.0f s", wall, seconds)
    if failed:
        raise ExtensionError("Executing notebooks failed:\n" + "\n".join(failed))


def executed(page: Path, limit: int) -> tuple[nbformat.NotebookNode, float]:
    """A page's notebook with its outputs, and the seconds that it took."""
    run = single_nb_execution(on_site(page), str(page.parent), limit, False, **STARTED_BY)
    if run.err:
        raise RuntimeError(run.exc_string)
    return run.nb, run.time


def keep(cache: str, page: Path, done: Future) -> float:
    """Put an executed page into the cache; its seconds."""
    notebook, seconds = done.result()
    bundle = CacheBundleIn(notebook, str(page), data={"execution_seconds": seconds})
    get_cache(cache).cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
    logger.info("%s: %.0f s", page.name, seconds)
    return seconds


def copy_mathjax(static: Path) -> None:
    """Copy the MathJax files that a page loads (1.8 of the package's 24 MB) to `static/mathjax`."""
    package = Path(
        distribution("sphinx-mathjax-offline").locate_file("sphinx-mathjax-offline/static/mathjax")
    )
    for file in (f for pattern in MATHJAX_FILES for f in package.glob(pattern)):
        target = static / "mathjax" / file.relative_to(package)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)


def write_vega(static: Path) -> None:
    """Write Vega, Vega-Lite and vega-embed as one script that leaves `vegaEmbed` behind, and
    nothing else that could be in the way.
    """
    (static / "vega.js").write_text(
        f"(() => {{{vl_convert.javascript_bundle()}}})();", encoding="utf-8"
    )


def copy_records(target: Path) -> None:
    """Mirror the JSON records (no weights, no cache) to `target`."""
    shutil.rmtree(target, ignore_errors=True)
    from iekd import records

    for record in [*records.files(RECORDS), *records.files(RECORDS, records.ANALYSIS)]:
        copy = target / record.relative_to(RECORDS)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(record, copy)


def for_the_site(app: Sphinx, docname: str, source: list[str]) -> None:
    """Turn the cells tagged `caption` into what they are on the site."""
    if Path(app.env.doc2path(docname)).suffix == ".ipynb":
        notebook = json.loads(source[0])
        notebook["cells"] = site_cells(notebook["cells"])
        source[0] = json.dumps(notebook)


def site_cells(cells: list[dict]) -> list[dict]:
    """The cells of a notebook, with captions in the metadata of the figures above them."""
    kept: list[dict] = []
    for cell in cells:
        tags = cell["metadata"].get("tags", ())
        if "caption" in tags:
            text = "".join(cell["source"]).strip().strip("*")
            kept[-1]["metadata"]["mystnb"]["figure"]["caption"] = text
        else:
            kept.append(cell)
    return kept


def on_site(page: Path) -> nbformat.NotebookNode:
    """A page's notebook as MyST-NB gets it."""
    notebook = json.loads(page.read_text(encoding="utf-8"))
    notebook["cells"] = site_cells(notebook["cells"])
    return nbformat.reads(json.dumps(notebook), as_version=4)


def unread(html: str) -> list[str]:
    """What a page, of the site or of plain nbconvert, shows that should have been read or filled
    in.
    """
    return sorted(set(UNREAD.findall(NO_TEXT.sub(" ", html))))


@functools.cache
def places(page: Path) -> set[str]:
    """The anchors of a built page."""
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    return {unescape(place) for place in PLACE.findall(text)}


def dead_anchors(site: Path, page: Path, text: str) -> list[str]:
    """The links of a page to a place that the other page, or this one, does not have."""
    wanted: dict[str, set[str]] = {}
    for name, place in PAGE_LINK.findall(text):
        wanted.setdefault(name or page.name, set()).add(unquote(unescape(place)))
    dead = []
    for name in sorted(wanted):
        dead += [f"{name}#{place}" for place in sorted(wanted[name] - places(site / name))]
    return dead


def without_thebe(app: Sphinx, page: str, template: str, context: dict, doctree: object) -> None:
    """Take the script of sphinx-thebe, which names a foreign host, from a page."""
    kept = []
    for script in context["script_files"]:
        if "thebe" not in f"{script.filename} {script.attributes.get('body')}":
            kept.append(script)
    context["script_files"] = kept


def with_time(body: str, seconds: float) -> str:
    """A page that says how long its execution took, instead of 'a while'."""
    time = f"{seconds:.0f} seconds" if seconds < 100 else f"{seconds / 60:.1f} minutes"
    return A_WHILE.sub(rf"The live cells took {time}\1 when this site was built", body)


def times_table(env: BuildEnvironment) -> str:
    """Every page that was executed, in the order of the book, with its seconds."""
    from iekd.report import html

    metadata, root = getattr(env, "nb_metadata", {}), env.config.root_doc
    rows = []
    for page in (root, *env.toctree_includes.get(root, ())):
        executed = metadata.get(page, {}).get("exec_data") or {}
        if seconds := executed.get("runtime"):
            title = html.link(env.titles[page].astext(), f"{page}.html")
            rows.append(html.row(title, f"{seconds:.0f}"))
    return html.table("Live cells, in this build", "", ("page", "seconds"), rows)


def say_time(app: Sphinx, page: str, template: str, context: dict, doctree: object) -> None:
    """`with_time` for a page that was executed, and the table of all times where it belongs."""
    executed = getattr(app.env, "nb_metadata", {}).get(page, {}).get("exec_data") or {}
    if seconds := executed.get("runtime"):
        context["body"] = with_time(context["body"], seconds)
    if TIMES in context.get("body", ""):
        context["body"] = context["body"].replace(TIMES, times_table(app.env))


def captioned(notebook: Path) -> list[str]:
    """The names of the figures that a notebook promises; none if the page is no notebook."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"] if notebook.is_file() else []
    figures = [cell["metadata"].get("mystnb", {}).get("figure", {}) for cell in cells]
    return [figure["name"] for figure in figures if "name" in figure]


def drawn(site: Path, html: str) -> set[str]:
    """The names of the figures on a page that hold a picture, in a file that exists."""
    pictures = {name: PICTURE.search(content) for name, content in FIGURE.findall(html)}
    return {
        name for name, found in pictures.items() if found and (site / unquote(found[1])).is_file()
    }


def answers(notebook: dict) -> list[str]:
    """What the checks of an executed page's exercises should not have said: the skeleton is empty,
    of the answers in the solution the first is right, and two or more are wrong.
    """
    found = []
    for cell in notebook["cells"]:
        tags = cell["metadata"].get("tags", ())
        said = "".join("".join(output.get("text", "")) for output in cell.get("outputs", ()))
        verdicts = re.findall(r"^(Right|Not yet|Nothing to check)\b", said, re.M)
        right, wrong = verdicts.count("Right"), verdicts.count("Not yet")
        if "solution" in tags:
            good = verdicts[:1] == ["Right"] and right == 1 and wrong >= 2
        else:
            good = "exercise" not in tags or verdicts == ["Nothing to check"]
        found += [] if good else [f"an exercise says {said!r}"]
    return found


def broken_sentences(notebook: dict) -> list[str]:
    """Lines in the middle of a paragraph that begin with a number and a full stop: where Jupyter
    sees one, it begins a list.
    """
    found = []
    for cell in notebook["cells"]:
        texts = [cell["source"]] if cell["cell_type"] == "markdown" else []
        texts += [
            output.get("data", {}).get("text/markdown", "") for output in cell.get("outputs", ())
        ]
        for paragraph in re.split(r"\n\s*\n", "\n\n".join("".join(text).strip() for text in texts)):
            if not NUMBERED.match(paragraph):
                found += [f"a line begins a list: {m[0]!r}" for m in NUMBERED.finditer(paragraph)]
    return found


def misread(cache: str, source: Path, docs: Iterable[str]) -> list[str]:
    """What `answers` and `broken_sentences` find in the notebooks of these pages as they were
    executed, which the cache keeps, whenever that was.
    """
    found = []
    for page in (source / f"{doc}.ipynb" for doc in sorted(docs)):
        if not page.is_file():
            continue
        notebook = on_site(page)
        try:
            _, run = get_cache(cache).merge_match_into_notebook(notebook)
        except KeyError:  # nothing to execute
            run = notebook
        found += [f"{page.name}: {what}" for what in answers(run) + broken_sentences(run)]
    return found


def problems(site: Path, docs: Iterable[str], source: Path) -> list[str]:
    """One line for each promise that a built page breaks; `source` is the folder of the pages'
    sources.
    """
    found = []
    for page in (site / f"{doc}.html" for doc in sorted(docs)):
        text = page.read_text(encoding="utf-8")
        if page.stat().st_size > MAX_PAGE_BYTES:
            found.append(f"{page.name}: {page.stat().st_size} bytes, more than {MAX_PAGE_BYTES}")
        found += [
            f"{page.name}: loads {url}"
            for url in FOREIGN.findall(text) + FOREIGN_LINK.findall(text)
        ]
        missing = sorted(
            {link for link in RECORD_LINK.findall(text) if not (site / unquote(link)).is_file()}
        )
        found += [f"{page.name}: links to {link}, which does not exist" for link in missing]
        dead = dead_anchors(site, page, text)
        found += [f"{page.name}: links to {place}: no such place" for place in dead]
        found += [f"{page.name}: shows {what}, as it stands" for what in unread(text)]
        found += [
            f"{page.name}: {picture} has no description; mystnb.image.alt of its cell says it"
            for picture in UNDESCRIBED.findall(text)
        ]
        lacking = [
            name
            for name in captioned(source / f"{page.stem}.ipynb")
            if name not in drawn(site, text)
        ]
        found += [
            f"{page.name}: {name} has a caption and no picture; its cell must return a figure"
            for name in lacking
        ]
    return found


def finish(app: Sphinx, exception: Exception | None) -> None:
    """Complete and check the built site."""
    if exception or app.builder.format != "html":
        return
    site = Path(app.outdir)
    copy_mathjax(site / "_static")
    write_vega(site / "_static")
    copy_records(site / "records")
    source, docs = Path(app.srcdir), app.env.found_docs
    wrong = misread(app.config.nb_execution_cache_path, source, docs)
    if found := problems(site, docs, source) + wrong:
        raise ExtensionError("The site breaks its promises:\n" + "\n".join(found))


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_config_value("iekd_toc", "", "env", str)
    app.config.mathjax_path = "mathjax/tex-chtml.js"
    app.connect("config-inited", choose_cache, priority=100)
    app.connect("env-before-read-docs", execute)
    app.connect("env-before-read-docs", forget)
    app.connect("source-read", for_the_site)
    app.connect("html-page-context", without_thebe, priority=900)
    app.connect("html-page-context", say_time)
    app.connect("build-finished", finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
