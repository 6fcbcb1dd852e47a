"""The displayed name of an arm, its colour and address: made last, from its columns; no key."""

import re
import textwrap
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from iekd.config import RunConfig, known
from iekd.config.reads import TRAINED_TEACHER
from iekd.method import registry

# After Okabe and Ito, distinguishable with colour-vision deficiency; by variant, the same on every
# page.
COLOURS = {
    "teacher": "#000000",
    "supervised": "#6e6e6e",
    "kd": "#b58900",  # Okabe and Ito's orange, darker for contrast on white
    "ft": "#0072b2",
    "ie-ft": "#d55e00",
    "ie-ft-explore=none": "#56a0d3",
    "ie-ft-inherit=none": "#009e73",
}
OTHER = "#a3527f"  # the ablations share one colour; their labels tell them apart


def wrapped(name: str, width: int = 22) -> str:
    """A label in lines that end at commas and before brackets; on a phone, data needs the room.

    >>> print(wrapped("IE-FT (inherit partial L2, explore L1)"))
    IE-FT
    (inherit partial L2,
    explore L1)
    """
    parts = re.split(r"(?<=,) | (?=\()", name)
    parts = [p.replace(" ", "\N{NO-BREAK SPACE}") if len(p) <= width else p for p in parts]
    whole = {"break_long_words": False, "break_on_hyphens": False}
    text = textwrap.fill(" ".join(parts), width, **whole)
    return text.replace("\N{NO-BREAK SPACE}", " ")


def method_name(method: str) -> str:
    """The displayed name of a method: 'IE-FT', 'FitNet'."""
    row = known.methods().get(method)
    return row.label if row else method.upper()


def measure_name(measure: str) -> str:
    """The displayed name of a measure: 'L1', 'partial L2'; for an unknown one, its key."""
    known.load()
    row = registry.MEASURES.get(measure)
    return row.label if row else measure


def config_of(row: Mapping[str, Any]) -> RunConfig:
    """The configuration of a finished run, from its row in the frame of records."""
    fields = {name: row[name] for name in RunConfig.model_fields}
    return RunConfig.model_validate(fields, context={"finished": True})


def label(row: Mapping[str, Any], told: Collection[str] = ()) -> str:
    """The displayed name of a run's arm; without `role`, a network alone may be either."""
    if row.get("role") == "teacher":
        return "Teacher"
    if row["method"] == "supervised" and row.get("role") != "student":
        return _with_changes("Trained alone", config_of(row), told)
    return label_of(config_of(row), told)


def label_of(config: RunConfig, told: Collection[str] = ()) -> str:
    """The label of a student's arm: 'KD', 'IE-FT (inherit L1, explore CKA), split halves'.

    Fields that are `told` elsewhere are left out.
    """
    name = method_name(config.method)
    if not config.method.startswith("ie-"):
        return _with_changes(name, config, told)
    halves = _halves(name, config.inherit, config.explore)
    return _with_changes(halves, config, {"inherit", "explore", *told})


def names_of(configs: Iterable[RunConfig]) -> dict[str, str]:
    """The labels of the arms of one table, by variant, without what all of them share."""
    arms = {config.variant: config for config in configs}
    said = shared(arms.values())
    return {variant: label_of(config, said) for variant, config in arms.items()}


def shared(configs: Iterable[RunConfig]) -> dict[str, str]:
    """What all arms of a table share that differs from their preset; a table says it once.

    Settings of teachers count if all arms with a teacher agree.
    """
    arms = {config.variant: config for config in configs}
    taught = {variant for variant, config in arms.items() if config.has_teacher}
    found: dict[str, dict[str, str]] = {}
    for variant, config in arms.items():
        for field in config.changed():
            found.setdefault(field, {})[variant] = config.named()[field]
    return {
        field: next(iter(values.values()))
        for field, values in found.items()
        if len(arms) > 1
        and len(set(values.values())) == 1
        and values.keys() >= (taught if field in TRAINED_TEACHER else arms.keys())
    }


def _with_changes(name: str, config: RunConfig, told: Collection[str] = ()) -> str:
    """The name, and what else differs from the preset; a method's own weight is just 'weight'."""
    values, own = config.named(), config.method.replace("-", "") + "_"
    fields = [field for field in config.changed() if field not in told]
    changed = {field.removeprefix(own): values[field] for field in fields}
    return ", ".join([name, *settings(changed)])


def settings(values: Mapping[str, str]) -> list[str]:
    """Fields and their values as in a label: 'teacher epochs 15'."""
    return [f"{field.replace('_', ' ')} {value}" for field, value in values.items()]


def _halves(name: str, inherit: str, explore: str) -> str:
    prefix = "" if name == "IE-FT" else f"{name}, "
    match inherit, explore:
        case "none", "none":
            return f"{name} without either loss"
        case _, "none":
            return f"{prefix}inheritance only ({measure_name(inherit)})"
        case "none", _:
            return f"{prefix}exploration only ({measure_name(explore)})"
        case "l1", "l1":
            return name
    return f"{name} (inherit {measure_name(inherit)}, explore {measure_name(explore)})"


def colour(row: Mapping[str, Any]) -> str:
    """The colour of a run's arm in figures."""
    if row.get("role") == "teacher":
        return COLOURS["teacher"]
    return COLOURS.get(row.get("variant", ""), OTHER)


def networks(pair: str) -> str:
    """A pair for display: 'resnet56 → resnet20'."""
    return pair.replace("-", " → ")


def anchor(row: Mapping[str, Any]) -> str:
    """The id of an arm's section on the page of records: letters, digits, '.', '_' and '-'."""
    name = "--".join(row[field] for field in ("preset", "dataset", "pair", "variant"))
    return re.sub(r"[^A-Za-z0-9._-]", "-", name)


def record_link(row: Mapping[str, Any]) -> str:
    """Address of the arm's section on the page of records; '' for live runs, which it lacks."""
    if row["preset"] == "smoke":
        return ""
    return f"records.html#{anchor(row)}"


def folder(row: Mapping[str, Any]) -> str:
    """Where the records of an arm are stored, below the folder of all records."""
    return row["path"].rpartition("/")[0]
