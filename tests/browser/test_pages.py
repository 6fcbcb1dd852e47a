"""The built book as a reader's browser shows it: `make browse`, after `make book`.

Every page is opened wide and narrow, light and dark. Skipped, and said so, where there is no built
book, no Chromium, or no axe-core (the package axe-core-python, of the extra `dev`).
"""

import functools
import importlib.util
import json
import re
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from chromium import Chromium, Gone, binary

ROOT = Path(__file__).parents[2]
SITE = ROOT / "_build" / "html"
PAGES = sorted(p.stem for p in SITE.glob("*.html") if p.stem not in ("search", "genindex"))
WIDE, PHONE, SCREEN = 1440, 390, 820
MOST_SCREENS, LEAST_LABEL = 20, 9.0  # a phone's screens, pixels
SMALLEST_FONT = 9.5  # points; test_figures.py holds all code to it
SERIOUS = ("serious", "critical")
# What Sphinx writes by itself into the text of a page.
FOREIGN = [".citation-list", "div.citation", ".headerlink", ".pst-scrollable-table-container"]
# Rows of a table that differ in words and numbers only: one is judged for all. (The page of records has
# 1,900 rows; axe needed minutes for its colours.)
TWINS = r"""[...document.querySelectorAll("article.bd-article tbody")].reduce((count, body) => {
  const shapes = new Set();
  for (const row of [...body.rows]) {
    const shape = row.outerHTML.replace(/>[^<]+</g, ">x<").replace(/ (href|id|title)="[^"]*"/g, "");
    if (shapes.has(shape)) { row.remove(); count++; } else shapes.add(shape);
  }
  return count}, 0)"""
AXE = """axe.run({include: [["article.bd-article"]], exclude: %s}, %s).then(found =>
  found.violations.map(v => [v.impact, v.id, v.nodes.map(n => n.target.join(" "))]))"""
WIDER = """[...document.querySelectorAll("article *")].filter(e =>
  e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".ie-scroll, .ie-table-scroll,
  .cell_output, pre, table, figure, .math, mjx-container")).slice(0, 3).map(e => e.outerHTML.slice(0, 80))"""
IMAGES = """[...document.querySelectorAll("article img")].filter(e => e.clientWidth).map(e => {
  const style = getComputedStyle(e), sides = parseFloat(style.paddingLeft) + parseFloat(style.paddingRight);
  return [decodeURIComponent(new URL(e.src).pathname), e.clientWidth - sides]})"""
# What scrolls sideways without the shadow that says so: none is drawn, or a row covers it.
UNTOLD = """[...document.querySelectorAll("article pre, article .ie-table-scroll, article .text_html, " +
  "article .pst-scrollable-table-container")].filter(e => e.scrollWidth > e.clientWidth + 1).filter(e =>
  !getComputedStyle(e).backgroundImage.includes("gradient") || [...e.querySelectorAll("tr, td:not([class])")]
  .some(cell => getComputedStyle(cell).backgroundColor != "rgba(0, 0, 0, 0)")).map(e => e.outerHTML.slice(0, 80))"""

# Formulas, set by a script, whose beginning lies where nobody can scroll to, or not at first.
BEHEADED = """(window.MathJax?.startup?.promise ?? Promise.resolve()).then(() =>
  [...document.querySelectorAll("article div.math > *")].filter(e => e.getBoundingClientRect().left <
  e.parentElement.getBoundingClientRect().left - 1).map(e => e.textContent.slice(0, 40)))"""

pytestmark = pytest.mark.skipif(not PAGES, reason="there is no built book: make book")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    """The address of the site on a host, as a reader has it."""
    handler = functools.partial(Quiet, directory=str(SITE))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    if not (program := binary()):
        pytest.skip(
            "there is no Chromium; Debian: apt install chromium; else name it, CHROMIUM=..."
        )
    found = Chromium(program)
    yield found
    found.close()


@pytest.fixture(scope="module")
def axe() -> str:
    """The script of axe-core, which the package only carries."""
    if not (package := importlib.util.find_spec("axe_core_python")):
        pytest.skip("there is no axe-core; pip install axe-core-python")
    folder = Path(package.submodule_search_locations[0])
    return (folder / "axe.min.js").read_text(encoding="utf-8")


def broken(events: list[dict[str, Any]]) -> list[str]:
    """Errors of scripts, and files that are not there."""
    found = []
    for event in events:
        said = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            found.append(said["exceptionDetails"]["exception"].get("description", "exception"))
        if event.get("method") == "Log.entryAdded" and said["entry"]["level"] == "error":
            found.append(f"{said['entry']['text']} {said['entry'].get('url', '')}")
        if event.get("method") == "Runtime.consoleAPICalled" and said["type"] == "error":
            found.append(" ".join(str(a.get("value")) for a in said["args"]))
    return found


def judged(browser: Chromium, axe: str, **options: Any) -> list[str]:
    """What axe-core finds serious in the page's own text; of rows of one shape, in the first."""
    browser.value(axe + "; 0")
    browser.value(TWINS)
    found = browser.value(AXE % (json.dumps([[f] for f in FOREIGN]), json.dumps(options)))
    return [f"{what}: {', '.join(where[:3])}" for impact, what, where in found if impact in SERIOUS]


def steady(test: Callable[..., None]) -> Callable[..., None]:
    """The test, once more in a fresh browser if Chromium dies or hangs: twice is the page's fault."""

    @functools.wraps(test)
    def twice(browser: Chromium, **given: Any) -> None:
        try:
            test(browser, **given)
        except Gone as gone:
            warnings.warn(f"once more in a fresh browser: {gone}", stacklevel=2)
            browser.restart()
            test(browser, **given)

    return twice


@pytest.mark.parametrize("page", PAGES)
@steady
def test_no_script_fails_and_all_can_be_read_by_all(browser, host, axe, page):
    browser.open(f"{host}/{page}.html", WIDE)
    assert broken(browser.events) == []
    assert judged(browser, axe) == []
    browser.open(f"{host}/{page}.html", WIDE, dark=True)
    assert judged(browser, axe, runOnly=["color-contrast"]) == []


@steady
def test_of_rows_of_one_shape_one_is_judged(browser, host):
    browser.open(f"{host}/index.html", WIDE)
    rows = (
        "<td>1</td><td></td>",
        "<td>2</td><td></td>",
        '<td class="a">3</td><td></td>',
        "<td>4</td><td>5</td>",
    )
    table = f"<table><tbody>{''.join(f'<tr>{row}</tr>' for row in rows)}</tbody></table>"
    browser.value(f"document.querySelector('article.bd-article').innerHTML = {table!r}; 0")
    assert browser.value(TWINS) == 1
    left = "[...document.querySelectorAll('td:first-child')].map(cell => cell.textContent)"
    assert browser.value(left) == ["1", "3", "4"]


@pytest.mark.parametrize("page", PAGES)
@steady
def test_a_page_is_read_on_a_phone(browser, host, page):
    browser.open(f"{host}/{page}.html", PHONE)
    assert broken(browser.events) == []
    width, height = browser.value(
        "[document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
    )
    assert width <= PHONE, browser.value(WIDER)
    assert height <= MOST_SCREENS * SCREEN, f"{height / SCREEN:.1f} screens"
    assert browser.value(BEHEADED) == []
    small = {}
    for path, shown in browser.value(IMAGES):
        label = shown * smallest(SITE / path.lstrip("/"))
        if label < LEAST_LABEL - 0.05:
            small[path] = f"labels of {label:.1f} px"
    assert small == {}
    for theme in ("light", "dark"):
        browser.value(f"document.documentElement.dataset.theme = '{theme}'")
        assert browser.value(UNTOLD) == [], f"{theme}: it scrolls, and no shadow says so"


@pytest.mark.parametrize("death", ["ends", "crashes", "hangs"])
def test_a_dead_browser_fails_no_page(browser, host, death):
    """One that ends, loses its page or hangs is replaced; one that does it again is told of."""
    opened = []

    @steady
    def test(browser, deaths):
        opened.append(browser.process.pid)
        if len(opened) <= deaths:
            die(browser, death)
        browser.open(f"{host}/index.html", WIDE)
        assert "explore" in browser.value("document.title")

    with pytest.warns(UserWarning, match="once more in a fresh browser"):
        test(browser, deaths=1)
    assert len(set(opened)) == 2
    opened.clear()
    with pytest.warns(UserWarning), pytest.raises(Gone):
        test(browser, deaths=2)
    browser.restart()


def die(browser: Chromium, death: str) -> None:
    if death == "ends":
        browser.process.kill()
        browser.process.wait(20)
    elif death == "crashes":
        browser("Page.navigate", url="chrome://crash")
    else:
        with pytest.MonkeyPatch.context() as hasty:
            hasty.setattr(browser, "patience", 3)
            browser.value("(() => { while (true) {} })()")


def smallest(picture: Path) -> float:
    """The height of a picture's smallest label as a share of its width."""
    if picture.suffix == ".svg":
        text = picture.read_text(encoding="utf-8")
        width = float(re.search(r'viewBox="\S+ \S+ (\S+)', text)[1])
        sizes = re.findall(r'font-size(?:=")?:?\s*([\d.]+)|\bfont:[^;"]*?([\d.]+)px', text)
        return min((float(a or b) for a, b in sizes), default=width) / width
    return SMALLEST_FONT / (72 * inches(picture.read_bytes()))


def inches(png: bytes) -> float:
    """The width that a figure was drawn for: its pixels by those of an inch, which it names."""
    pixels = struct.unpack(">I", png[16:20])[0]
    place = png.find(b"pHYs")
    return pixels / (struct.unpack(">I", png[place + 4 : place + 8])[0] * 0.0254)
