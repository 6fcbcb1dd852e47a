"""All methods in one table, read from the code itself: what a method does and where it comes from are the docstrings of its module."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterable, Mapping
from html import escape
from types import ModuleType
from typing import Any, get_args

import pandas as pd
from torch import nn

from iekd.config import RunConfig
from iekd.config.run import MethodName
from iekd.report import tables
from iekd.report.labels import method_name
from iekd.report.tuning import weights

COSTS = [
    "method",
    "cost",
    "low",
    "high",
    "parameters",
]  # of a row of `iekd.benchmark.bench`'s table of methods
METHODS = tuple(name for name in get_args(MethodName) if name not in ("supervised", "factor-ae"))


def module_of(method: str) -> ModuleType:
    """The module that a method's file is."""
    return importlib.import_module(
        "iekd.baselines.registry." + {"ie-ft": "ie"}.get(method, method.replace("-", "_"))
    )


def class_of(method: str) -> type[nn.Module]:
    """The class that is the method: named as the method is, but for case and hyphens."""
    wanted = method.replace("-", "")
    return next(
        c
        for name, c in inspect.getmembers(module_of(method), inspect.isclass)
        if name.lower() == wanted
    )


def rows(names: Iterable[str] = METHODS, preset: str = "paper") -> list[dict[str, Any]]:
    """One row per method: method, label, idea and source (one text), loss, more (paragraphs: choices, deviations from the source),
    weights (usual ones) and file."""
    return [
        {
            "method": name,
            "label": method_name(name),
            "idea": _paragraphs(module_of(name))[0].partition(": ")[2],
            "loss": _paragraphs(class_of(name))[0],
            "more": _paragraphs(module_of(name))[1:] + _paragraphs(class_of(name))[1:],
            "weights": weights(RunConfig.create(preset, method=name)),
            "file": f"iekd/methods/{module_of(name).__name__.rpartition('.')[2]}.py",
        }
        for name in names
    ]


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
