"""Numbers, comparisons and remarks as text, so that a sentence is right whatever the records say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from iekd import records
from iekd.config import RunConfig
from iekd.config.grid import holding
from iekd.records import store
from iekd.report.arms import by_variant, students_of
from iekd.report.claims import CONFIRMATORY, NO_RUNS, SMALLEST, TOO_FEW
from iekd.report.comparison import comparison, smallest
from iekd.report.statistics import ALPHA, LEVEL, Outcome, Paired, holm, outcome, paired

SIGNS: dict[Outcome, str] = {
    "lower": "▼",
    "higher": "▲",
    "equivalent": "=",
    "inconclusive": "≈",
    "": "",
}
# What marks a run as unlike its arm, and the arms where it can be told: with fewer runs chance alone would mark some.
ROBUST_SDS, ENOUGH = 5, 10
# Of CIFAR-10, and of its copy that records with an exact error come from (a test counts).
TEST_IMAGES, RECOMPRESSED = 10_000, 20


# ---------------------------------------------------------------------- numbers


def number(value: float, digits: int = 2, signed: bool = False) -> str:
    """A number for people: true minus sign, em dash for NaN."""
    if pd.isna(value):
        return "—"
    return f"{round(value, digits) + 0.0:{'+' if signed else ''}.{digits}f}".replace("-", "−")


def interval(low: float, high: float, signed: bool = False, digits: int = 2) -> str:
    """'[6.90, 7.34]', or 'no interval'."""
    if pd.isna(low):
        return "no interval"
    return f"[{number(low, digits, signed)}, {number(high, digits, signed)}]"


def p_text(p: float) -> str:
    """'p = 0.012', 'p < 0.001'."""
    return "p < 0.001" if p < 0.001 else f"p = {number(p, 3)}"


def spread(mean: float, sd: float, digits: int = 2) -> str:
    """'7.12 ± 0.20', without the deviation where there is none."""
    return number(mean, digits) + ("" if pd.isna(sd) else f" ± {number(sd, digits)}")


def difference(result: Paired, digits: int = 2) -> str:
    """'−0.52 [−0.90, −0.14]'."""
    limits = interval(result.low, result.high, True, digits)
    return f"{number(result.difference, digits, signed=True)} {limits}"


# ---------------------------------------------------------------------- comparisons


def compared(
    runs: pd.DataFrame, variant: str, baseline: str, metric: str = "last", noun: str = "error"
) -> str:
    """How an arm stands to a baseline (both variants of a scope), in words and with the numbers behind them.

    'a lower error than FT (−0.52 points, 95 % interval [−0.90, −0.14], 5 pairs, p = 0.012)'; 'a higher error than ...';
    'an error equivalent to that of FT (...)'; 'an error that differs inconclusively from that of FT (...)'; 'no runs yet'.
    The rule is `statistics.outcome`, p Holm-corrected over the arms of `runs`. `noun` says what a metric is that is no error.
    """
    students = students_of(runs) if len(runs) else runs
    if not len(students) or not {variant, baseline} <= set(students["variant"]):
        return NO_RUNS
    table = comparison(students, baseline, metric).set_index("variant")
    row, name = table.loc[variant], table.loc[baseline, "label"]
    if variant == baseline:
        return f"nothing to be compared with: it is {name} itself"
    if row["pairs"] < 2:
        return f"{TOO_FEW} with {name}"
    found = (row[f"difference{end}"] for end in ("", "_low", "_high"))
    mean, low, high = found
    result = Paired(row["pairs"], mean, float("nan"), low, high, row["p"])
    return phrase(result, row["p_holm"], name, smallest(row["preset"], metric), noun)


def family(runs: pd.DataFrame, pairs: Sequence[tuple[str, str]], metric: str = "last") -> list[str]:
    """The same for several pairs (variant, baseline), Holm-corrected over these pairs and nothing else."""
    errors = by_variant(runs, metric)
    names = dict(zip(runs["variant"], runs["label"], strict=True))
    results = {(a, b): paired(errors[a], errors[b]) for a, b in pairs if {a, b} <= errors.keys()}
    corrected = dict(zip(results, holm(r.p for r in results.values()), strict=True))
    found = []
    for pair in pairs:
        if pair not in results:
            found.append(NO_RUNS)
        elif results[pair].n < 2:
            found.append(f"{TOO_FEW} with {names[pair[1]]}")
        else:
            bound = smallest(runs["preset"].iloc[0], metric)
            found.append(phrase(results[pair], corrected[pair], names[pair[1]], bound))
    return found


def phrase(result: Paired, p: float, against: str, smallest: float, noun: str = "error") -> str:
    """A difference in words, with the numbers behind them; `p` is its corrected p, `smallest` the smallest difference of interest."""
    digits, unit, article = (2, " points", "an") if noun == "error" else (3, "", "a")
    mean = number(result.difference, digits, signed=True) + unit
    limits = f"{100 * LEVEL:.0f} % interval {interval(result.low, result.high, True, digits)}"
    numbers = f"{mean}, {limits}, {result.n} pairs, {p_text(p)}"
    match outcome(result, p, smallest):
        case "equivalent":
            return f"{article} {noun} equivalent to that of {against} ({numbers}; within ±{smallest:g})"
        case "lower" | "higher" as found:
            return f"a {found} {noun} than {against} ({numbers})"
    return f"{article} {noun} that differs inconclusively from that of {against} ({numbers})"


# ---------------------------------------------------------------------- remarks on a table


def legend(preset: str) -> str:
    """What sign and word of a difference in error mean."""
    return (
        f"{SIGNS['lower']} lower, {SIGNS['higher']} higher: corrected p below {ALPHA:g}. Else "
        f"{SIGNS['equivalent']} equivalent: interval within ±{SMALLEST[preset]:g} points, the smallest "
        f"difference of interest; or {SIGNS['inconclusive']} inconclusive."
    )


def phase(runs: pd.DataFrame) -> str:
    """Which seeds these runs have."""
    if runs.empty:
        return f"There are {NO_RUNS}."
    first, last = runs["seed"].min(), runs["seed"].max()
    pilot = "runs of the pilot, seen before the protocol was fixed"
    kind = "confirmatory runs" if first >= CONFIRMATORY else pilot
    return f"These are {len(runs)} {kind} (seeds {first} to {last})."


def outliers(runs: pd.DataFrame, metric: str = "last") -> str:
    """The runs that lie far from the median of their arm; '' without any.

    Far: `ROBUST_SDS` robust standard deviations (1.4826 times the median absolute deviation), in arms of at least `ENOUGH` runs.
    """
    found = []
    for name, arm in runs.groupby("label", sort=False):
        values = arm.set_index("seed")[metric].dropna().astype(float)
        if len(values) < ENOUGH:
            continue
        middle = values.median()
        distance = (values - middle).abs()
        far = values[distance > ROBUST_SDS * 1.4826 * distance.median()]
        of_arm = f"(median of the arm: {number(middle)})"
        found += [f"{name}, seed {seed}: {number(value)} {of_arm}" for seed, value in far.items()]
    if not found:
        return ""
    far_away = f"More than {ROBUST_SDS} robust standard deviations from the median of its arm"
    return f"{far_away}, and counted all the same: {'; '.join(found)}."


def remark(runs: pd.DataFrame) -> str:
    """What to know of the test images of CIFAR-10 where errors on them are shown; '' where all are exact, or nothing is known."""
    shift = (runs["last_exact"].astype(float) - runs["last"]).dropna().abs()
    if not len(shift):
        return ""
    return (
        f"{RECOMPRESSED} of the {TEST_IMAGES:,} test images of CIFAR-10 are recompressed in the copy "
        f"used here. On the other {TEST_IMAGES - RECOMPRESSED:,} the error of no run here differs by "
        f"more than {number(shift.max())} points."
    )


def version_note(runs: pd.DataFrame, baselines: Sequence[str]) -> str:
    """How many paired differences to the baselines (variants) are between runs of two versions of PyTorch; '' if none is."""
    students = students_of(runs)
    known = torch_versions(students["path"])
    students = students[students["path"].isin(known)]
    keys = zip(students["variant"], students["seed"], strict=True)
    torch = dict(zip(keys, map(known.get, students["path"]), strict=True))
    pairs = []
    for variant, seed in torch:
        against = [(b, seed) for b in baselines if b != variant and (b, seed) in torch]
        pairs += [{torch[variant, seed], torch[other]} for other in against]
    mixed = [versions for versions in pairs if len(versions) > 1]
    if not mixed:
        return ""
    names = " and ".join(sorted(set.union(*mixed)))
    return (
        f"In {len(mixed)} of these {len(pairs)} differences the two runs were made with different "
        f"versions of PyTorch ({names})."
    )


def torch_versions(paths: Iterable[str]) -> dict[str, str]:
    """The version of PyTorch that made each run, by the path of its record, as far as that is at hand."""
    files = {path: store.records_folder() / f"{path}.json" for path in paths}
    there = {path: records.read(file) for path, file in files.items() if file.exists()}
    return {path: record.versions["torch"].partition("+")[0] for path, record in there.items()}


def sweep_command(paths: Iterable[str]) -> str:
    """The command that makes these runs (paths of records): a sweep of the grids that hold them, '' if none does."""
    grids = holding(paths)
    return f"iekd sweep {' '.join(grids)}" if grids else ""


def sweep_of(runs: pd.DataFrame, configs: Iterable[RunConfig]) -> str:
    """The same of a scope: of its students, or of what would make them while there are none."""
    students = students_of(runs)["path"]
    return sweep_command(students if len(students) else [c.path for c in configs])
