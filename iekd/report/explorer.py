"""The explorer: all runs of the record store in one interactive figure, static and offline (Vega-Lite through Altair).

The script that draws it is the page's affair: `Vega` in a file beside the page, see `book/_ext/iekd_site.py`.
"""

from __future__ import annotations

import json
from typing import Any

import altair as alt
import pandas as pd

from iekd import records
from iekd.config import RunConfig
from iekd.report import figures, tables, tuning
from iekd.report.labels import measure_name, method_name, scope

ANY, USUAL, NONE = "any", "as usual", "—"
STEP = 40  # pixels of an arm


def arms_and_runs(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The figure's data. Arms: `k` (a number), what they are chosen by, n, mean, low, high, folder of the records. Runs: k, seed `s`,
    test error after the last epoch `e`, and the curve, epochs `x` and test errors `y`."""
    arms, runs = [], []
    pairs = frame.loc[
        (frame["teacher"] != "none") & (frame["student"] != "none"),
        ["preset", "dataset", "teacher", "student"],
    ]
    for preset, dataset, teacher, student in pairs.drop_duplicates().itertuples(
        index=False, name=None
    ):
        of_pair = scope(frame, preset, dataset=dataset, teacher=teacher, student=student)
        summaries = {(r["role"], r["variant"]): r for r in tables.arms(of_pair).to_dict("records")}
        for (role, variant), group in of_pair.groupby(["role", "variant"], sort=False):
            facets = _facets(group.iloc[0].to_dict())
            name = f"{preset}: {dataset}, {teacher} → {student}"
            arms.append(
                {"k": len(arms), "setting": name, **facets, **_numbers(summaries[role, variant])}
            )
            runs += [_run(len(arms) - 1, row) for row in group.to_dict("records")]
    return pd.DataFrame(arms), pd.DataFrame(runs)


def _facets(row: dict[str, Any]) -> dict[str, Any]:
    """What an arm is called, and what it can be chosen by."""
    config = RunConfig(**{name: row[name] for name in RunConfig.model_fields})
    usual = RunConfig.create(config.preset, method=config.method, dataset=config.dataset)
    weights, by_default = tuning.weights(config), tuning.weights(usual)
    as_usual = all(by_default[name] == value for name, value in weights.items())
    taught, ie = row["role"] == "student", config.method == "ie-ft"
    return {
        "arm": row["label"] if taught else "Teacher",
        "method": method_name(config.method) if taught else "Teacher",
        "inherit": measure_name(config.inherit) if ie else NONE,
        "explore": measure_name(config.explore) if ie else NONE,
        "weights": USUAL if as_usual else " / ".join(f"{value:g}" for value in weights.values()),
        "other": taught and bool(set(config.changed()) - set(weights) - {"inherit", "explore"}),
        "colour": figures.colour(row["label"] if taught else "Teacher"),
        "folder": row["path"].rpartition("/")[0],
    }


def _numbers(summary: dict[str, Any]) -> dict[str, Any]:
    numbers = {
        name: round(summary[name], 2) if pd.notna(summary[name]) else None
        for name in ("mean", "low", "high")
    }
    return {"n": summary["n"], **numbers}


def _run(k: int, row: dict[str, Any]) -> dict[str, Any]:
    errors = records.read(records.store.records_folder() / f"{row['path']}.json").history.get(
        "test_error", []
    )
    known = [(epoch, round(error, 2)) for epoch, error in enumerate(errors, 1) if error is not None]
    return {
        "k": k,
        "s": row["seed"],
        "e": round(row["last"], 2),
        "x": [epoch for epoch, _ in known],
        "y": [error for _, error in known],
    }


def chart(frame: pd.DataFrame) -> alt.VConcatChart:
    """Points of the final errors above, learning curves below, with a choice of networks, method, measures and weights."""
    arms, runs = arms_and_runs(frame)
    params, chosen = _choices(arms)
    table = alt.Data(values=json.loads(arms.to_json(orient="records")))
    of_arm = alt.Chart(table).transform_filter(chosen)
    each = (
        alt.Chart(alt.Data(values=json.loads(runs.to_json(orient="records"))))
        .transform_lookup(
            "k", alt.LookupData(data=table, key="k", fields=[c for c in arms.columns if c != "k"])
        )
        .transform_filter(chosen)
        .transform_calculate(url="'records/' + datum.folder + '/seed' + datum.s + '.json'")
    )
    hover = alt.selection_point(
        name="hover", fields=["arm"], on="pointerover", clear="pointerout", empty=False
    )
    whole = alt.vconcat(
        _points(of_arm, each, hover), _curves(each, hover), background="white", padding=12
    )
    return (
        whole.add_params(*params)
        .configure_view(stroke=None)
        .configure_axis(labelFontSize=11, titleFontSize=12, gridColor="#e6e6e6")
    )


def _choices(arms: pd.DataFrame) -> tuple[list[alt.Parameter], str]:
    """What a reader chooses by, and the expression that an arm passes."""
    settings = list(dict.fromkeys(arms["setting"]))
    usual = {
        "setting": max(settings, key=lambda name: (arms["setting"] == name).sum()),
        "method": ANY,
        "inherit": measure_name("l1"),
        "explore": measure_name("l1"),
        "weights": USUAL,
    }
    params, passes = [], ["(choose_other || !datum.other)"]
    for field, value in usual.items():
        options = (
            settings
            if field == "setting"
            else [ANY, *dict.fromkeys(o for o in arms[field] if o != NONE)]
        )
        name = "Networks" if field == "setting" else field.capitalize()
        params.append(
            alt.param(
                name=f"choose_{field}",
                value=value,
                bind=alt.binding_select(options=options, name=f"{name} "),
            )
        )
        passes.append(
            f"(choose_{field} == '{ANY}' || datum.{field} == '{NONE}' || datum.{field} == choose_{field})"
        )
    params.append(
        alt.param(
            name="choose_other", value=False, bind=alt.binding_checkbox(name="Other settings, too ")
        )
    )
    return params, " && ".join(passes)


def _points(of_arm: alt.Chart, each: alt.Chart, hover: alt.Parameter) -> alt.LayerChart:
    """A row for each arm: its name, every seed, mean and interval."""
    rows, colour = alt.Y("arm:N", sort=None, axis=None), alt.Color("colour:N", scale=None)
    scale = alt.Scale(zero=False)
    summary = ["arm:N", "n:Q", "mean:Q", "low:Q", "high:Q"]
    names = {"arm:N": "arm", "s:Q": "seed", "e:Q": "test error, %", "url:N": "record"}
    bold = alt.condition(hover, alt.value(1), alt.value(0.7))
    return alt.layer(
        of_arm.mark_text(align="left", baseline="bottom", dy=-6, fontSize=12).encode(
            rows, x=alt.value(0), text="arm:N"
        ),
        of_arm.mark_rule(strokeWidth=3, opacity=0.5, yOffset=6).encode(
            rows, alt.X("low:Q", scale=scale), alt.X2("high:Q"), color=colour
        ),
        of_arm.mark_tick(thickness=3, size=14, yOffset=6).encode(
            rows, alt.X("mean:Q", scale=scale), color=colour, tooltip=summary
        ),
        each.mark_circle(size=40, yOffset=6)
        .encode(
            rows,
            alt.X("e:Q", title="Test error after the last epoch, %", scale=scale),
            color=colour,
            opacity=bold,
            href="url:N",
            tooltip=[alt.Tooltip(field, title=name) for field, name in names.items()],
        )
        .add_params(hover),
    ).properties(width=600, height=alt.Step(STEP))


def _curves(each: alt.Chart, hover: alt.Parameter) -> alt.Chart:
    """The mean test error of each arm by epoch, where it was evaluated."""
    strong = alt.condition(hover, alt.value(1), alt.value(0.4))
    error = alt.Y("mean(y):Q", scale=alt.Scale(zero=False), title="Test error, %")
    lines = each.transform_flatten(["x", "y"]).mark_line(point=True, strokeWidth=2)
    encoded = lines.encode(
        alt.X("x:Q", title="Epoch"),
        error,
        alt.Color("colour:N", scale=None),
        opacity=strong,
        detail="arm:N",
        tooltip=["arm:N", "x:Q", "mean(y):Q"],
    )
    return encoded.properties(width=600, height=260)


def html(frame: pd.DataFrame, script: str = "_static/vega.js") -> str:
    """The figure for a page beside which `script` lies; without JavaScript a line that says what to read instead."""
    spec = json.dumps(chart(frame).to_dict(), separators=(",", ":"), ensure_ascii=False).replace(
        "</", "<\\/"
    )
    return f"""<div id="explorer-choices" class="ie-choices"></div>
<div id="explorer" class="ie-explorer" role="figure" aria-label="All runs: errors by arm, and learning curves"></div>
<noscript>This figure needs JavaScript. The same runs are on the page of records, and in the tables.</noscript>
<script src="{script}"></script>
<script>
(() => {{
  const spec = {spec};
  const place = document.getElementById("explorer");
  const choices = document.getElementById("explorer-choices");
  const draw = () => {{
    const width = Math.min(760, place.clientWidth - 90);
    spec.vconcat.forEach((view) => {{ view.width = width; }});
    choices.replaceChildren();
    vegaEmbed(place, spec, {{bind: choices, actions: {{export: true, source: false, compiled: false, editor: false}}, renderer: "svg"}});
  }};
  let last = 0;
  new ResizeObserver(() => {{
    if (Math.abs(place.clientWidth - last) > 20) {{ last = place.clientWidth; draw(); }}
  }}).observe(place);
}})();
</script>"""
