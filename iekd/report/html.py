"""The markup of the pages' tables; no other module writes any.

`tag` escapes text and leaves markup as it is, so that nothing else has to. Style sheets and tests
rely on the classes.
"""

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
from markupsafe import Markup, escape

SHORT = 120  # letters of a note that is shown unfolded, two lines on a phone
SENTENCES = "ie-wrap"  # the class of a table of sentences
# Jupyter lacks our style sheet and would align all cells to the right
LEFT = Markup(
    f"<style>.{SENTENCES} :is(th, td) {{text-align: left !important; vertical-align: top}}</style>"
)


class Cell(NamedTuple):
    """A cell: its text, where that links to, a mark behind; smaller lines and `more` below."""

    text: Any = "—"
    small: Sequence[Any] = ()
    kind: str = ""
    href: str = ""
    mark: str = ""
    more: Any = ""


def tag(element: str, *content: Any, **attributes: Any) -> Markup:
    """An element; empty attributes are left out, `class_` and `aria_label` become HTML's."""
    named = {name.rstrip("_").replace("_", "-"): v for name, v in attributes.items() if v != ""}
    opened = Markup("").join(Markup(' {}="{}"').format(*item) for item in named.items())
    inner = Markup("").join(map(escape, content))
    return Markup("<{0}{1}>{2}</{0}>").format(element, opened, inner)


def link(text: Any, href: str) -> Markup:
    """The text as a link; just the text if there is no `href`."""
    return tag("a", text, href=href) if href else escape(text)


def small(text: Any) -> Markup:
    return tag("small", text)


def lines(texts: Iterable[Any], between: str = Markup("<br/>")) -> Markup:
    """Texts below one another, or with something else `between` them."""
    return Markup(between).join(texts)


def row(head: Any, *cells: Any, id: str = "") -> Markup:
    """A row of a table: its head, then cells; each a `Cell` or the content of one."""
    return tag("tr", _cell(head, "th", scope="row"), *map(_cell, cells), id=id) + "\n"


def column(text: Any, **attributes: Any) -> Markup:
    """The head of a column."""
    return tag("th", text, **{"scope": "col", **attributes})


def _cell(cell: Any, element: str = "td", **attributes: str) -> Markup:
    c = cell if isinstance(cell, Cell) else Cell(cell)
    first = Markup("{}{}").format(link(c.text, c.href) if c.href else c.text, c.mark)
    # Jupyter lacks our style sheet, which would start a new line for small text
    said = lines(filter(None, [first, *map(small, c.small)]))
    return tag(element, said, c.more, class_=c.kind, **attributes)


def table(
    caption: str,
    note: str,
    heads: Sequence[str] | Markup,
    rows: Iterable[Markup],
    kind: str = "",
    foot: str = "",
) -> Markup:
    """An accessible table that scrolls sideways on a narrow screen.

    `heads` are the names of the columns, or whole rows (`Markup`); `rows` are made by `row`; `kind`
    holds one or more further classes; `foot` goes below it.
    """
    if not isinstance(heads, Markup):
        heads = tag("tr", *map(column, heads))
    title = tag("caption", lines([tag("span", caption), _note(note)]))
    body = tag("tbody", "\n", *rows)
    parts = title, "\n", tag("thead", heads), "\n", body
    filled = tag("table", *parts, class_=f"ie-table {kind}".strip())
    scrolls = {"class_": "ie-table-scroll", "role": "region", "tabindex": 0, "aria_label": caption}
    scrolling = tag("div", LEFT if SENTENCES in kind else "", "\n", filled, **scrolls) + "\n"
    return block(scrolling, foot) if foot else scrolling


def _note(text: str) -> Markup:
    """How to read a table: a long text is folded."""
    if len(text) <= SHORT:
        return small(text)
    return tag("details", tag("summary", "How to read it"), small(text), class_="ie-note")


def block(*parts: str) -> Markup:
    """A table and what belongs to it."""
    return tag("div", *parts, class_="ie-block") + "\n"


def folded(title: str, *parts: Any) -> Markup:
    """Optional content, folded; readable without style sheets, too."""
    return tag("details", tag("summary", title), "\n", *parts, class_="ie-fold") + "\n"


def frame(table: pd.DataFrame, kind: str = "", **how: Any) -> Markup:
    """A table for reading only, with a dash for unknown values; `how` is for pandas."""
    how = {"classes": f"ie-table {kind}".strip(), "border": 0, "na_rep": "—", **how}
    shown = Markup(table.to_html(**how))
    return LEFT + shown if SENTENCES in kind else shown


def bullets(texts: Iterable[Any]) -> Markup:
    """A list of texts."""
    return tag("ul", *(tag("li", text) + "\n" for text in texts))


def tabs(panels: Mapping[str, Markup], legend: str) -> Markup:
    """Several tables (by title) in one place: one is shown, the others are a click or a key away.

    Needs neither JavaScript nor our style sheet, which Jupyter lacks. A single table has no tabs.
    """
    if len(panels) == 1:
        return next(iter(panels.values()))
    name = "tabs-" + hashlib.sha256("".join(panels.values()).encode()).hexdigest()[:10]
    choices = []
    for k, title in enumerate(panels):
        radio = f'<input type="radio" name="{name}" id="{name}-{k}" autocomplete="off"'
        checked = "" if k else ' checked="checked"'
        choices += [Markup(f"{radio}{checked}/>"), tag("label", title, for_=f"{name}-{k}"), "\n"]
    panes = [tag("div", panel, class_="ie-pane") + "\n" for panel in panels.values()]
    rules = [".ie-tabs .ie-pane {display: none}"]
    for k in range(len(panels)):
        pane = f".ie-pane:nth-of-type({k + 1})"
        rules += [f".ie-tabs #{name}-{k}:checked ~ {pane} {{display: block}}"]
    style = tag("style", *(Markup(rule) for rule in rules)) + "\n"
    parts = tag("legend", legend), "\n", style, *choices, *panes
    return tag("fieldset", *parts, class_="ie-tabs") + "\n"


def foot(*parts: Any) -> Markup:
    """What goes below a table of results."""
    return tag("div", lines(parts, between=" "), class_="ie-foot") + "\n"


def command(text: str) -> Markup:
    """The command that makes what is shown."""
    return tag("span", "Command: ", tag("code", text))


def csv_link(frame: pd.DataFrame, name: str, text: str = "CSV") -> Markup:
    """A download link that carries a frame as a CSV file within the page."""
    data = base64.b64encode(frame.to_csv(index=False, float_format="%.6g").encode()).decode()
    return tag("a", text, class_="ie-download", download=name, href=f"data:text/csv;base64,{data}")
