"""Comparisons as phrases for running text, so that a sentence is right whatever the records say."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from iekd.report import tables
from iekd.report.claims import NO_RUNS, TOO_FEW
from iekd.report.statistics import LEVEL, Paired, holm, outcome, paired


def compared(
    runs: pd.DataFrame, variant: str, baseline: str, metric: str = "last", noun: str = "error"
) -> str:
    """How an arm stands to a baseline (both variants of a `scope`), in words and with the numbers behind them.

    'a lower error than FT (−0.52 points, 95 % interval [−0.90, −0.14], 5 pairs, p = 0.012)'; 'a higher error than ...';
    'an error equivalent to that of FT (...)'; 'an error that differs inconclusively from that of FT (...)'; 'no runs yet'.
    The rule is `stats.outcome`, p Holm-corrected over the arms of `runs`. For a metric that is no error, `noun` says what it is.
    """
    students = runs[runs["role"] == "student"] if len(runs) else runs
    if not len(students) or not {variant, baseline} <= set(students["variant"]):
        return NO_RUNS
    table = tables.comparison(students, baseline, metric).set_index("variant")
    row, name = table.loc[variant], table.loc[baseline, "label"]
    if variant == baseline:
        return f"nothing to be compared with: it is {name} itself"
    if row["pairs"] < 2:
        return f"{TOO_FEW} with {name}"
    result = Paired(
        row["pairs"],
        row["difference"],
        float("nan"),
        row["difference_low"],
        row["difference_high"],
        row["p"],
    )
    return phrase(result, row["p_holm"], name, tables.smallest(row["preset"], metric), noun)


def family(runs: pd.DataFrame, pairs: Sequence[tuple[str, str]], metric: str = "last") -> list[str]:
    """The same for several pairs (variant, baseline), Holm-corrected over these pairs and nothing else."""
    errors = {
        variant: arm.set_index("seed")[metric]
        for variant, arm in runs[runs["role"] == "student"].groupby("variant")
    }
    names = dict(zip(runs["variant"], runs["label"], strict=True))
    absent = pd.Series(dtype=float)
    results = [paired(errors.get(a, absent), errors.get(b, absent)) for a, b in pairs]
    corrected = holm(r.p for r in results)
    smallest = tables.smallest(runs["preset"].iloc[0], metric) if len(runs) else 0.0
    return [
        (phrase(r, p, names[b], smallest) if r.n >= 2 else f"{TOO_FEW} with {names[b]}")
        if {a, b} <= set(errors)
        else NO_RUNS
        for (a, b), r, p in zip(pairs, results, corrected, strict=True)
    ]


def phrase(result: Paired, p: float, against: str, smallest: float, noun: str = "error") -> str:
    """A difference in words, with the numbers behind them; `p` is its corrected p, `smallest` the smallest difference of interest."""
    digits, unit, article = (2, " points", "an") if noun == "error" else (3, "", "a")
    difference = tables.number(result.difference, digits, signed=True) + unit
    limits = tables.interval(result.low, result.high, True, digits)
    numbers = (
        f"{difference}, {100 * LEVEL:.0f} % interval {limits}, {result.n} pairs, {tables.p_text(p)}"
    )
    match outcome(result, p, smallest):
        case "equivalent":
            return f"{article} {noun} equivalent to that of {against} ({numbers}; within ±{smallest:g})"
        case "lower" | "higher" as found:
            return f"a {found} {noun} than {against} ({numbers})"
    return f"{article} {noun} that differs inconclusively from that of {against} ({numbers})"
