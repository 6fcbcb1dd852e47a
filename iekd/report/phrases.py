"""Numbers, comparisons and remarks as text: sentences stay right whatever the records say."""

from collections.abc import Iterable, Sequence
from typing import get_args

import pandas as pd

from iekd.config.grid import holding
from iekd.report.arms import by_variant, students_of
from iekd.report.claims import CONFIRMATORY, NO_RUNS, SMALLEST, TOO_FEW
from iekd.report.comparison import comparison, smallest
from iekd.report.statistics import ALPHA, LEVEL, Outcome, Paired, holm, outcome, paired

SIGNS = dict(zip(get_args(Outcome), ("▼", "▲", "=", "≈", ""), strict=True))
# What marks a run as an outlier of its arm, for arms of at least so many runs: with fewer, chance
# alone would mark some.
ROBUST_SDS, ENOUGH = 5, 10
# Of CIFAR-10, and of the copy that records with an exact error come from (a test counts them).
TEST_IMAGES, RECOMPRESSED = 10_000, 20


def number(value: float, digits: int = 2, signed: bool = False) -> str:
    """A number for display: true minus sign, em dash for NaN."""
    if pd.isna(value):
        return "—"
    sign, rounded = "+" if signed else "", round(float(value), digits) + 0.0
    return f"{rounded:{sign}.{digits}f}".replace("-", "−")


def interval(low: float, high: float, signed: bool = False, digits: int = 2) -> str:
    """'[6.90, 7.34]', or 'no interval'."""
    if pd.isna(low):
        return "no interval"
    return f"[{number(low, digits, signed)}, {number(high, digits, signed)}]"


def p_number(p: float) -> str:
    """'0.012', '< 0.001'."""
    return "< 0.001" if p < 0.001 else number(p, 3)


def p_text(p: float) -> str:
    """'p = 0.012', 'p < 0.001'."""
    return f"p {'' if p < 0.001 else '= '}{p_number(p)}"


def spread(mean: float, sd: float, digits: int = 2) -> str:
    """'7.12 ± 0.20', without the deviation if there is none."""
    return number(mean, digits) + ("" if pd.isna(sd) else f" ± {number(sd, digits)}")


def difference(result: Paired, digits: int = 2, unit: str = "") -> str:
    """'−0.52 [−0.90, −0.14]', or '−0.52, no interval'."""
    comma = "," if pd.isna(result.low) else ""
    limits = interval(result.low, result.high, True, digits)
    return f"{number(result.difference, digits, signed=True)}{unit}{comma} {limits}"


def compared(
    runs: pd.DataFrame,
    variant: str,
    baseline: str,
    metric: str = "last",
    noun: str = "error",
    brief: bool = False,
) -> str:
    """How an arm compares with a baseline (variants of a scope), in words and numbers.

    'a lower error than FT (−0.52 points, 95 % interval [−0.90, −0.14], 5 pairs, p = 0.012)'; 'an
    error equivalent to that of FT (...)'; 'an error that differs inconclusively from that of FT
    (...)'; 'no runs yet'. The rule is `statistics.outcome`, p Holm-corrected over the arms of
    `runs`. `noun` names a metric other than the error; `brief` leaves out the test's numbers.
    """
    errors = by_variant(runs, metric)
    if not {variant, baseline} <= errors.keys():
        return NO_RUNS
    if variant == baseline:
        students = students_of(runs).set_index("variant")["label"]
        return f"nothing to compare it with: it is {students[[variant]].iloc[0]} itself"
    pairs = [(rival, baseline) for rival in errors if rival != baseline]
    return family(runs, pairs, metric, noun, brief)[pairs.index((variant, baseline))]


def family(
    runs: pd.DataFrame,
    pairs: Sequence[tuple[str, str]],
    metric: str = "last",
    noun: str = "error",
    brief: bool = False,
) -> list[str]:
    """The same for several pairs (variant, baseline), Holm-corrected over exactly these."""
    errors, students = by_variant(runs, metric), students_of(runs)
    names = dict(zip(students["variant"], students["label"], strict=True))
    results = {(a, b): paired(errors[a], errors[b]) for a, b in pairs if {a, b} <= errors.keys()}
    corrected = dict(zip(results, holm(r.p for r in results.values()), strict=True))
    bound = smallest(runs["preset"].iloc[0], metric) if results else 0.0
    found = dict.fromkeys(pairs, NO_RUNS)
    for pair, result in results.items():
        name = _in_text(names[pair[1]])
        found[pair] = phrase(result, corrected[pair], name, bound, noun, brief)
    return [found[pair] for pair in pairs]


def _in_text(label: str) -> str:
    """An arm's label within a sentence."""
    return "the student alone" if label == "Student alone" else label


def phrase(
    result: Paired,
    p: float,
    against: str,
    smallest: float,
    noun: str = "error",
    brief: bool = False,
) -> str:
    """A difference in words and numbers; `p` is corrected, `smallest` the least of interest."""
    if result.n < 2:
        return f"{TOO_FEW} with {against}"
    digits, unit, article = (2, " points", "an") if noun == "error" else (3, "", "a")
    mean, of = number(result.difference, digits, signed=True) + unit, f"that of {against}"
    limits = interval(result.low, result.high, True, digits)
    limits = limits if pd.isna(result.low) else f"{100 * LEVEL:.0f} % interval {limits}"
    tested = "no spread to test" if pd.isna(p) else p_text(p)
    numbers = mean if brief else f"{mean}, {limits}, {result.n} pairs, {tested}"
    match outcome(result, p, smallest):
        case "equivalent":
            within = "" if brief else f"; within ±{smallest:g}"
            return f"{article} {noun} equivalent to {of} ({numbers}{within})"
        case "lower" | "higher" as found:
            return f"a {found} {noun} than {against} ({numbers})"
    return f"{article} {noun} that differs inconclusively from {of} ({numbers})"


def gathered(
    runs: pd.DataFrame,
    baseline: str,
    things: str = "arms",
    variants: Iterable[str] = (),
    metric: str = "last",
    noun: str = "error",
) -> str:
    """How the arms of a table (or only `variants`) compare with one of them, as counts.

    'none of the 6 measures has a lower error than IE-FT; 5 have a higher one, by 0.40 to 1.52
    points (most: KD); 1 is inconclusive'. The outcomes are those of the table.
    """
    if baseline not in by_variant(runs, metric):
        return NO_RUNS
    table, students = comparison(runs, baseline, metric), students_of(runs)
    names = dict(zip(students["variant"], students["label"], strict=True))  # those on the page
    table["label"] = table["variant"].map(names).fillna(table["label"])
    against = _in_text(table.loc[table["baseline"], "label"].iloc[0])
    wanted = set(variants) or set(table["variant"])
    rows = table[table["variant"].isin(wanted) & table["outcome"].ne("")]
    if rows.empty:
        return NO_RUNS

    # which are lower and higher, and by how much; the others are only counted
    of = {name: rows[rows["outcome"] == name] for name in SIGNS}
    lower, higher = len(of["lower"]), len(of["higher"])
    some = f"{lower or 'none'} of the {len(rows)}" if lower < len(rows) else f"all {lower}"
    some = f"{some} {things} {'have' if lower > 1 else 'has'}"
    found = [f"{some} a lower {noun} than {against}{_by(of['lower'], noun)}"]
    if higher:
        have = "have" if higher > 1 else "has"
        found += [f"{higher} {have} a higher one{_by(of['higher'], noun)}"]
    for name in ("equivalent", "inconclusive"):
        if count := len(of[name]):
            found += [f"{count} {'are' if count > 1 else 'is'} {name}"]
    return "; ".join(found)


def _by(rows: pd.DataFrame, noun: str) -> str:
    """How far from the baseline: ', by 0.40 to 1.52 points (A; B)', or ' (most: A)' for many."""
    if rows.empty:
        return ""
    digits, unit = (2, " points") if noun == "error" else (3, "")
    sizes = rows["difference"].abs()
    ends = dict.fromkeys(number(size, digits) for size in (sizes.min(), sizes.max()))
    names = "; ".join(rows["label"]) if len(rows) < 3 else f"most: {rows['label'][sizes.idxmax()]}"
    return f", by {' to '.join(ends)}{unit} ({names})"


def legend(preset: str) -> str:
    """What the sign and the word for a difference in error mean."""
    return (
        f"{SIGNS['lower']} lower, {SIGNS['higher']} higher: corrected p below {ALPHA:g}. "
        f"Otherwise {SIGNS['equivalent']} equivalent: interval within ±{SMALLEST[preset]:g} "
        f"points, the smallest difference of interest; or {SIGNS['inconclusive']} inconclusive."
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
    """The runs that are far from the median of their arm; '' if there are none.

    Far: `ROBUST_SDS` robust standard deviations (1.4826 times the median absolute deviation).
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
    far_away = f"More than {ROBUST_SDS} robust standard deviations from the median of its arm"
    return f"{far_away}, but still counted: {'; '.join(found)}." if found else ""


def remark(runs: pd.DataFrame) -> str:
    """What to know about the test images of CIFAR-10; '' if all are exact, or nothing is known."""
    shift = (runs["last_exact"].astype(float) - runs["last"]).dropna().abs()
    if not len(shift):
        return ""
    return (
        f"{RECOMPRESSED} of the {TEST_IMAGES:,} test images of CIFAR-10 are recompressed in the "
        f"copy used here. Counted on the other {TEST_IMAGES - RECOMPRESSED:,} only, no run's error "
        f"changes by more than {number(shift.max())} points."
    )


def version_note(runs: pd.DataFrame, baselines: Sequence[str]) -> str:
    """How many paired differences are between runs of two versions of PyTorch; '' if none."""
    torch = students_of(runs).set_index(["variant", "seed"])["torch"].to_dict()
    pairs = []
    for variant, seed in torch:
        others = [b for b in baselines if b != variant and (b, seed) in torch]
        pairs += [{torch[variant, seed], torch[other, seed]} for other in others]
    mixed = [versions for versions in pairs if len(versions) > 1]
    if not mixed:
        return ""
    names = " and ".join(sorted(set().union(*mixed)))
    return (
        f"In {len(mixed)} of these {len(pairs)} differences the two runs were made with different "
        f"versions of PyTorch ({names})."
    )


def sweep_command(paths: Iterable[str]) -> str:
    """A sweep of the grids that hold these runs (paths of records); '' if none does."""
    grids = holding(paths)
    return f"iekd sweep {' '.join(grids)}" if grids else ""
