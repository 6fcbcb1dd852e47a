"""All methods in one table, read from the docstrings of their code."""

import inspect
import re
import sys
from collections.abc import Mapping
from typing import Any

import pandas as pd
from markupsafe import Markup, escape

from iekd.config import RunConfig, known
from iekd.report import html
from iekd.report.html import Cell
from iekd.report.phrases import number
from iekd.report.tables import foot
from iekd.report.tuning import short, weights

# Columns of `iekd.benchmark.bench`'s table of methods.
COSTS = ["method", "cost", "low", "high", "parameters"]


def rows(preset: str = "paper") -> list[dict[str, Any]]:
    """One row for every method that distils: method, label, idea and source (one text), loss, more
    (paragraphs: choices, deviations from the source), weights (usual ones) and file."""
    found = []
    for name, method in known.methods().items():
        if name in ("supervised", "factor-ae"):
            continue
        module = method.kind.__module__
        about, (loss, *more) = _paragraphs(sys.modules[module]), _paragraphs(method.kind)
        row = {"method": name, "label": method.label, "loss": loss}
        row["idea"] = method.source or about[0].partition(": ")[2]
        row["more"] = more if method.source else about[1:] + more
        row["weights"] = weights(RunConfig.create(preset, method=name))
        found.append(row | {"file": module.replace(".", "/") + ".py"})
    return found


def _paragraphs(thing: Any) -> list[str]:
    """The paragraphs of a docstring, each on one line."""
    return [" ".join(text.split()) for text in inspect.getdoc(thing).split("\n\n")]


def methods_html(measured: Mapping[str, Any] | None, caption: str, command: str = "") -> Markup:
    """The table of all methods; `measured` (by `command`) is one entry of `bench.load()`."""
    costs = {row["method"]: row for row in measured["methods"]} if measured else {}
    listed = rows()
    heads = ["method", "idea and source; loss", "weights", "extra parameters", "time of a step"]
    body = []
    for row in listed:
        more = [*row["more"], f"Code: `{row['file']}`"]
        about = Cell(row["idea"], [_coded(row["loss"])], more=_folded(more))
        weighed = [f"{short(name)}\N{NO-BREAK SPACE}{v:g}" for name, v in row["weights"].items()]
        cells = about, html.lines(weighed), *_cost(costs.get(row["method"]))
        body.append(html.row(row["label"], *cells))
    note = (
        "Weights: the usual ones; the folded text says where they were published, or that we chose "
        "them. Extra parameters: trained along with the student and then discarded (for two "
        "networks that teach each other, not counting the other network). Time per step: relative "
        "to plain training of the same student, median and range over rounds."
    )
    texts = pd.DataFrame(listed).drop(columns=["weights", "more"])
    times = pd.DataFrame(costs.values(), columns=COSTS)
    below = foot(texts.merge(times, how="left", on="method"), caption, command)
    return html.table(caption, note, heads, body, "ie-wrap ie-cards ie-methods", below)


def _coded(text: str) -> Markup:
    """Text with its code marked up."""
    parts: list[str] = re.split(r"`([^`]+)`", text)
    parts[1::2] = [html.tag("code", code) for code in parts[1::2]]
    return html.lines(map(escape, parts), between="")


def _folded(paragraphs: list[str]) -> Markup:
    """Paragraphs that unfold at a click."""
    summary = html.tag("summary", "code, choices and differences")
    more = [html.tag("p", _coded(text)) for text in paragraphs]
    return html.tag("details", summary, *more, class_="ie-fold")


def _cost(row: Mapping[str, Any] | None) -> tuple[Cell, Cell]:
    if row is None:
        return Cell(), Cell("not measured")
    limits = f"{number(row['low'])} to {number(row['high'])}"
    return Cell(f"{row['parameters']:,}"), Cell(number(row["cost"]), [limits])
