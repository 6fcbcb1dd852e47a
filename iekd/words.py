"""Comparisons as phrases for running text, so that a sentence is right whatever the records say."""

from __future__ import annotations

import pandas as pd

from iekd import tables
from iekd.claims import NO_RUNS, TOO_FEW
from iekd.stats import LEVEL

ALPHA = 0.05


def compared(runs: pd.DataFrame, variant: str, baseline: str, metric: str = "last", noun: str = "error") -> str:
    """How an arm stands to a baseline (both variants of a `scope`), in words and with the numbers behind them.

    'a lower error than FT (−0.52 points, 95 % interval [−0.90, −0.14], 5 pairs, p = 0.012)'; 'a higher error than ...';
    'an error not distinguishable from that of FT (...)'; 'no runs yet'. Lower and higher only for p below 0.05,
    Holm-corrected over the arms of `runs`. For a metric that is no error, `noun` says what it is.
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
    digits, unit, article = (2, " points", "an") if noun == "error" else (3, "", "a")
    difference = tables.number(row["difference"], digits, signed=True) + unit
    limits = tables.interval(row["difference_low"], row["difference_high"], True, digits)
    numbers = f"{difference}, {100 * LEVEL:.0f} % interval {limits}, {row['pairs']} pairs, {tables.p_text(row['p_holm'])}"
    if not row["p_holm"] < ALPHA:  # also NaN
        return f"{article} {noun} not distinguishable from that of {name} ({numbers})"
    return f"a {'lower' if row['difference'] < 0 else 'higher'} {noun} than {name} ({numbers})"
