"""The explorer: all runs in one interactive figure, static and offline (Vega-Lite).

The page supplies the script that draws it: `Vega` in a file next to the page, see
`book/_ext/iekd_site.py`.
"""

import json
from importlib.resources import files
from typing import Any

import pandas as pd

from iekd import records
from iekd.config import RunConfig
from iekd.records import store
from iekd.report import tuning
from iekd.report.arms import scope
from iekd.report.labels import (
    colour,
    config_of,
    folder,
    measure_name,
    method_name,
    networks,
    wrapped,
)
from iekd.report.statistics import summary

ANY, USUAL, NONE = "any", "as usual", "—"


def arms_and_runs(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The figure's data. Arms: `k` (a number), what they can be chosen by, n, mean, low, high,
    folder of the records. Runs: k, seed `s`, test error after the last epoch `e`, and the curve,
    epochs `x` and test errors `y`."""
    arms, runs = [], []
    setting = ["preset", "dataset", "teacher", "student"]
    pairs = frame[(frame["teacher"] != "none") & (frame["student"] != "none")]
    for fields in pairs[setting].drop_duplicates().to_dict("records"):
        of_pair = scope(frame, **fields)
        pair = networks(f"{fields['teacher']}-{fields['student']}")
        name = {"setting": f"{fields['preset']}: {fields['dataset']}, {pair}"}
        for _, group in of_pair.groupby(["role", "variant"], sort=False):
            rows = group.to_dict("records")
            runs += [{"k": len(arms), **_run(row)} for row in rows]
            arms.append({"k": len(arms), **name, **_facets(rows[0]), **_numbers(group["last"])})
    return pd.DataFrame(arms), pd.DataFrame(runs)


def _facets(row: dict[str, Any]) -> dict[str, Any]:
    """The name of an arm, and what it can be chosen by."""
    config, taught = config_of(row), row["role"] == "student"
    usual = RunConfig.create(config.preset, method=config.method, dataset=config.dataset)
    weights, ie = tuning.weights(config), config.method == "ie-ft"
    chosen = " / ".join(f"{value:g}" for value in weights.values())
    changed = set(config.changed()) - set(weights) - {"inherit", "explore"}
    return {
        "arm": row["label"],
        "name": wrapped(row["label"], 20),
        "method": method_name(config.method) if taught else row["label"],
        "inherit": measure_name(config.inherit) if ie else NONE,
        "explore": measure_name(config.explore) if ie else NONE,
        "weights": USUAL if weights.items() <= tuning.weights(usual).items() else chosen,
        "other": taught and bool(changed),
        "colour": colour(row),
        "folder": folder(row),
    }


def _numbers(errors: pd.Series) -> dict[str, Any]:
    s = summary(errors)
    limits = {"mean": s.mean, "low": s.low, "high": s.high}
    known = {name: round(value, 2) for name, value in limits.items() if pd.notna(value)}
    return {"n": s.n, **dict.fromkeys(limits), **known}


def _run(row: dict[str, Any]) -> dict[str, Any]:
    history = records.read(store.record_file(row["path"])).history
    errors = enumerate(history.get("test_error", []), 1)
    known = [(epoch, round(error, 2)) for epoch, error in errors if error is not None]
    x, y = ([point[k] for point in known] for k in (0, 1))
    return {"s": row["seed"], "e": round(row["last"], 2), "x": x, "y": y}


def spec(frame: pd.DataFrame) -> dict[str, Any]:
    """The figure: explorer.json, filled with data and choices."""
    arms, runs = (json.loads(t.to_json(orient="records")) for t in arms_and_runs(frame))
    params, chosen = _choices(pd.DataFrame(arms))
    columns = json.dumps([column for column in arms[0] if column != "k"])
    text = files("iekd.report").joinpath("explorer.json").read_text(encoding="utf-8")
    figure = json.loads(text.replace("$CHOSEN", chosen).replace('"$COLUMNS"', columns))
    figure["params"] += params
    return {**figure, "datasets": {"arms": arms, "runs": runs}}


def _choices(arms: pd.DataFrame) -> tuple[list[dict[str, Any]], str]:
    """What a reader chooses by, and the expression that a chosen arm satisfies."""
    usual = {"setting": arms["setting"].value_counts(sort=False).idxmax(), "method": ANY}
    usual |= {"inherit": measure_name("l1"), "explore": measure_name("l1"), "weights": USUAL}
    params, passes = [], ["(choose_other || !datum.other)"]
    for field, value in usual.items():
        name, options = field.capitalize(), [ANY, *arms.loc[arms[field] != NONE, field].unique()]
        if field == "setting":
            name, options = "Networks", options[1:]
        bind = {"input": "select", "options": options, "name": f"{name} "}
        params.append({"name": f"choose_{field}", "value": value, "bind": bind})
        is_chosen = f"datum.{field} == choose_{field}"
        passes.append(f"(choose_{field} == '{ANY}' || datum.{field} == '{NONE}' || {is_chosen})")
    bind = {"input": "checkbox", "name": "Other settings, too "}
    return [*params, {"name": "choose_other", "value": False, "bind": bind}], " && ".join(passes)


def explorer_html(frame: pd.DataFrame, script: str = "_static/vega.js") -> str:
    """The figure for a page that has `script` next to it."""
    text = json.dumps(spec(frame), separators=(",", ":"), ensure_ascii=False)
    page = files("iekd.report").joinpath("explorer.html").read_text(encoding="utf-8")
    return page.replace("$SCRIPT", script).replace("$SPEC", text.replace("</", "<\\/"))
