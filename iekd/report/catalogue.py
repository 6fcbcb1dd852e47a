"""All methods in one table, read from the code itself: what a method does and where it comes from are the docstrings of its module."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

import pandas as pd

from iekd.config import RunConfig
from iekd.method import registry
from iekd.report import tables
from iekd.report.tuning import weights

COSTS = [
    "method",
    "cost",
    "low",
    "high",
    "parameters",
]  # of a row of `iekd.benchmark.bench`'s table of methods


def rows(names: Iterable[str] = (), preset: str = "paper") -> list[dict[str, Any]]:
    """One row per method: method, label, idea and source (one text), loss, more (paragraphs: choices, deviations from the source),
    weights (usual ones) and file."""
    return [
        {
            "method": name,
            "label": row.label,
            "idea": row.source
            or _paragraphs(sys.modules[row.kind.__module__])[0].partition(": ")[2],
            "loss": _paragraphs(row.kind)[0],
            "more": _more(row),
            "weights": weights(RunConfig.create(preset, method=name)),
            "file": row.kind.__module__.replace(".", "/") + ".py",
        }
        for name, row in _listed(names).items()
    ]


def _listed(names: Iterable[str]) -> dict[str, registry.Method]:
    """The methods of these names, or all that distil."""
    known = registry.methods()
    return {name: known[name] for name in names or known if name not in ("supervised", "factor-ae")}


def _more(row: registry.Method) -> list[str]:
    """What the docstrings say beyond idea and loss: choices, and differences from the source."""
    module = [] if row.source else _paragraphs(sys.modules[row.kind.__module__])[1:]
    return module + _paragraphs(row.kind)[1:]


def html(measured: Mapping[str, Any] | None, caption: str, command: str = "") -> str:
    """The table of all methods; `measured` is one entry of `iekd.benchmark.bench.load()`, None if nothing was measured; `command` measures."""
    costs = {row["method"]: row for row in measured["methods"]} if measured else {}
    body = "".join(_row(row, costs.get(row["method"])) for row in rows())
    head = f"<tr>{tables.heads_html('method', 'idea and source; loss', 'weights', 'extra parameters', 'time of a step')}</tr>"
    note = (
        "Weights: the usual ones; the folded text says where they were published, or that they are ours. Extra parameters: trained beside "
        "the student and thrown away afterwards "
        "(for two networks that teach each other: without the other network). Time of a step: relative to plain training of the same "
        "student, median and range over rounds."
    )
    texts = pd.DataFrame(rows()).drop(columns=["weights", "more"])
    data = texts.merge(pd.DataFrame(costs.values(), columns=COSTS), how="left", on="method")
    return tables.framed(
        caption, note, head, body, "ie-wrap ie-methods", tables.foot(data, caption, command)
    )


def _row(row: Mapping[str, Any], cost: Mapping[str, Any] | None) -> str:
    weighed = "<br>".join(
        f"{escape(name.removesuffix('_weight').removeprefix('kd_'))}&nbsp;{v:g}"
        for name, v in row["weights"].items()
    )
    more = "".join(f"<p>{escape(text)}</p>" for text in row["more"])
    more = re.sub(r"`([^`]+)`", r"<code>\1</code>", more)
    fold = '<details class="ie-fold"><summary>choices and differences</summary>'
    folded = f"{fold}{more}</details>" if more else ""
    return (
        f'<tr><th scope="row">{escape(row["label"])}<small>{escape(row["file"])}</small></th>'
        f"<td>{escape(row['idea'])}<small>{escape(row['loss'])}</small>{folded}</td><td>{weighed}</td>{_cost(cost)}</tr>\n"
    )


def _cost(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "<td>—</td><td>not measured</td>"
    limits = f"{tables.number(row['low'])} to {tables.number(row['high'])}"
    return f"<td>{row['parameters']:,}</td><td>{tables.number(row['cost'])}<small>{limits}</small></td>"


def _paragraphs(thing: Any) -> list[str]:
    """The paragraphs of a docstring, each on one line."""
    return [" ".join(text.split()) for text in inspect.getdoc(thing).split("\n\n")]
