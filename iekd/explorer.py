"""The explorer: all runs of the record store in one interactive figure, static and offline (Vega-Lite through Altair).

The script that draws it is the page's affair: `Vega` in a file beside the page, see `book/_ext/iekd_site.py`.
"""

from __future__ import annotations

import json
from typing import Any

import altair as alt
import pandas as pd

from iekd import figures, records, tables, tuning
from iekd.arms import MEASURES, method_name, scope
from iekd.config import RunConfig

ANY, PUBLISHED, NONE = "any", "as published", "—"
STEP = 40  # pixels of an arm


def arms_and_runs(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The figure's data. Arms: `k` (a number), what they are chosen by, n, mean, low, high, folder of the records. Runs: k, seed `s`,
    test error after the last epoch `e`, and the curve, epochs `x` and test errors `y`."""
    arms, runs = [], []
    taught = frame[frame["teacher"] != "none"]
    for preset, dataset, teacher, student in sorted(
        set(taught[["preset", "dataset", "teacher", "student"]].itertuples(index=False, name=None))
    ):
        if student == "none":
            continue
        of_pair = scope(frame, preset, dataset=dataset, teacher=teacher, student=student)
        summaries = {(r["role"], r["variant"]): r for r in tables.arms(of_pair).to_dict("records")}
        for (role, variant), group in of_pair.groupby(["role", "variant"], sort=False):
            summary, first = summaries[role, variant], group.iloc[0].to_dict()
            arms.append({"k": len(arms), "setting": f"{preset}: {dataset}, {teacher} → {student}", **_facets(first), **_numbers(summary)})
            runs += [_run(len(arms) - 1, row) for row in group.to_dict("records")]
    return pd.DataFrame(arms), pd.DataFrame(runs)


def _facets(row: dict[str, Any]) -> dict[str, Any]:
    """What an arm is called, and what it can be chosen by."""
    config = RunConfig(**{name: row[name] for name in RunConfig.model_fields})
    ie = config.method == "ie-ft"
    usual = RunConfig.create(config.preset, method=config.method, dataset=config.dataset)
    weights, published = tuning.weights(config), tuning.weights(usual)
    others = set(config.changed()) - set(weights) - {"inherit", "explore"}
    return {
        "arm": "Teacher" if row["role"] == "teacher" else row["label"],
        "method": "Teacher" if row["role"] == "teacher" else method_name(config.method),
        "inherit": MEASURES[config.inherit] if ie else NONE, "explore": MEASURES[config.explore] if ie else NONE,
        "weights": PUBLISHED if all(published.get(n, v) == v for n, v in weights.items()) else " / ".join(f"{v:g}" for v in weights.values()),
        "other": bool(others) and row["role"] == "student",
        "colour": figures.colour("Teacher" if row["role"] == "teacher" else row["label"]),
        "folder": row["path"].rpartition("/")[0],
    }  # fmt: skip


def _numbers(summary: dict[str, Any]) -> dict[str, Any]:
    numbers = {name: round(summary[name], 2) if pd.notna(summary[name]) else None for name in ("mean", "low", "high")}
    return {"n": summary["n"], **numbers}


def _run(k: int, row: dict[str, Any]) -> dict[str, Any]:
    errors = records.read(records.store.records_folder() / f"{row['path']}.json").history.get("test_error", [])
    known = [(epoch, round(error, 2)) for epoch, error in enumerate(errors, 1) if error is not None]
    return {"k": k, "s": row["seed"], "e": round(row["last"], 2), "x": [epoch for epoch, _ in known], "y": [error for _, error in known]}


def chart(frame: pd.DataFrame) -> alt.VConcatChart:
    """Points of the final errors above, learning curves below, with a choice of pair, method, measures and weights."""
    arms, runs = arms_and_runs(frame)
    settings = list(dict.fromkeys(arms["setting"]))
    main = max(settings, key=lambda name: (arms["setting"] == name).sum())
    names = {"setting": "Networks", "method": "Method", "inherit": "Inherit", "explore": "Explore", "weights": "Weights"}
    usual = {"setting": main, "method": ANY, "inherit": MEASURES["l1"], "explore": MEASURES["l1"], "weights": PUBLISHED}
    params, passes = [], []
    for field, name in names.items():
        options = list(dict.fromkeys(arms[field]))
        options = options if field == "setting" else [ANY, *(o for o in options if o != NONE)]
        params.append(alt.param(name=f"choose_{field}", value=usual[field], bind=alt.binding_select(options=options, name=f"{name} ")))
        passes.append(f"(choose_{field} == '{ANY}' || datum.{field} == '{NONE}' || datum.{field} == choose_{field})")
    params.append(alt.param(name="choose_other", value=False, bind=alt.binding_checkbox(name="Other settings changed, too ")))
    passes.append("(choose_other || !datum.other)")
    chosen, hover = (
        " && ".join(passes),
        alt.selection_point(name="hover", fields=["arm"], on="pointerover", clear="pointerout", empty=False),
    )
    table = alt.Data(values=json.loads(arms.to_json(orient="records")))
    look_up = alt.LookupData(data=table, key="k", fields=[c for c in arms.columns if c != "k"])
    each = alt.Chart(alt.Data(values=json.loads(runs.to_json(orient="records")))).transform_lookup("k", look_up).transform_filter(chosen)
    rows = alt.Y("arm:N", sort=None, axis=None, scale=alt.Scale(paddingInner=0.2))
    errors = alt.X("e:Q", title="Test error after the last epoch, %", scale=alt.Scale(zero=False))
    colour = alt.Color("colour:N", scale=None)
    of_arm = alt.Chart(table).transform_filter(chosen)
    bold = alt.condition(hover, alt.value(1), alt.value(0.75))
    points = alt.layer(
        of_arm.mark_text(align="left", baseline="bottom", dy=-7, fontSize=12).encode(rows, x=alt.value(0), text="arm:N"),
        of_arm.mark_rule(strokeWidth=3, opacity=0.5).encode(rows, alt.X("low:Q"), alt.X2("high:Q"), color=colour),
        of_arm.mark_tick(thickness=3, size=16).encode(rows, alt.X("mean:Q"), color=colour, tooltip=["arm:N", "n:Q", "mean:Q", "low:Q", "high:Q"]),
        each.transform_calculate(url="'records/' + datum.folder + '/seed' + datum.s + '.json'")
        .mark_circle(size=45)
        .encode(
            rows, errors, color=colour, opacity=bold, href="url:N",
            tooltip=[alt.Tooltip("arm:N"), alt.Tooltip("s:Q", title="seed"), alt.Tooltip("e:Q", title="test error, %"), alt.Tooltip("url:N", title="record")],
        ).add_params(hover),
    ).properties(width=600, height=alt.Step(STEP))  # fmt: skip
    lines = each.transform_flatten(["x", "y"]).encode(
        alt.X("x:Q", title="Epoch"), color=colour, opacity=alt.condition(hover, alt.value(1), alt.value(0.35)), detail="arm:N"
    )
    shape = {"scale": alt.Scale(zero=False), "title": "Test error, %"}
    curves = alt.layer(
        lines.mark_line(point=True, strokeWidth=2).encode(alt.Y("mean(y):Q", **shape), tooltip=["arm:N", "x:Q", "mean(y):Q"]),
    ).properties(width=600, height=260)
    whole = alt.vconcat(points, curves, background="white", padding=12).resolve_scale(color="independent")
    return whole.add_params(*params).configure_view(stroke=None).configure_axis(labelFontSize=11, titleFontSize=12, gridColor="#e6e6e6")


def html(frame: pd.DataFrame, script: str = "_static/vega.js") -> str:
    """The figure for a page beside which `script` lies; without JavaScript a line that says what to read instead."""
    spec = json.dumps(chart(frame).to_dict(), separators=(",", ":"), ensure_ascii=False).replace("</", "<\\/")
    return f"""<div id="explorer" class="ie-explorer" role="figure" aria-label="All runs: errors by arm, and learning curves"></div>
<noscript>This figure needs JavaScript. The same runs are on the page of records, and in the tables.</noscript>
<script src="{script}"></script>
<script>
(() => {{
  const spec = {spec};
  const place = document.getElementById("explorer");
  const draw = () => {{
    const width = Math.min(760, place.clientWidth - 90);
    spec.vconcat.forEach((view) => {{ view.width = width; }});
    vegaEmbed(place, spec, {{actions: {{export: true, source: false, compiled: false, editor: false}}, renderer: "svg"}});
  }};
  let last = 0;
  new ResizeObserver(() => {{
    if (Math.abs(place.clientWidth - last) > 20) {{ last = place.clientWidth; draw(); }}
  }}).observe(place);
}})();
</script>"""
