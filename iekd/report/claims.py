"""The paper's claims: which arm has to end below which others, where we know the claim from, and on which seeds it is decided.

`iekd.report.verdicts` holds them against the records. Sources are tags: T the paper's supplement (first-hand), B blog posts that describe
the paper (second-hand), A an unreviewed summary of the paper (second-hand), X our own reading.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from iekd.config import RunConfig

TRUST = {
    "T": "the paper's supplement",
    "B": "as reported second-hand (blog)",
    "A": "as reported second-hand",
    "X": "our reading",
}
TEACHER: dict[str, Any] = {"role": "teacher"}  # the arm "the teacher of a"
CONFIRMATORY = 100  # the first confirmatory seed; smaller ones are the pilot, seen before the protocol was fixed
REHEARSED = {
    "desk": 300
}  # the first seed that counts, by preset: smaller ones are rehearsals and are shown nowhere
PILOT = "pilot seeds only, seen before the protocol was fixed"
# Seeds of every arm. Until all arms of a claim have them, its verdict is open.
PLANNED = {"smoke": 2, "class": 20, "desk": 8, "paper": 5}
# The smallest difference of interest, in percentage points (the book's protocol says why), by preset.
SMALLEST = {"smoke": 0.5, "class": 0.5, "desk": 0.3, "paper": 0.2}
NO_RUNS, TOO_FEW, NO_ANALYSIS = "no runs yet", "fewer than two common seeds", "no analysed runs yet"
_defaults = {name: RunConfig.model_fields[name].default for name in ("ft_weight", "inherit_weight")}
HEAVIER = f"FT's weight is {_defaults['ft_weight'] / _defaults['inherit_weight']:g} times IE-FT's"
TWICE = f"{HEAVIER}, that of inheritance alone is the same; at class scale most runs were trained a second time to be measured"
OURS = "the sources only name {0}: its loss and its weight are our construction"


@dataclass(frozen=True)
class Claim:
    """The claim that arm `a` has a lower error than arm `b` (several: than every one of `b`).

    Arms name the fields that differ from the preset. `fields` hold for all arms; `swapped` exchanges teacher and
    student of the preset. A claim about another quantity than the error names its column in `metric` (see
    `iekd.analysis.metrics`). Without `a` there is nothing yet that could test the claim. `caveat` is what a reader of the
    verdict has to know.
    """

    id: str
    source: str
    sentence: str
    a: dict[str, Any] | None = None
    b: tuple[dict[str, Any], ...] = ()
    fields: dict[str, Any] = field(default_factory=dict)
    swapped: bool = False
    metric: str = ""
    caveat: str = ""


def _method(name: str) -> dict[str, Any]:
    return {"method": name}


def _ie(**fields: Any) -> dict[str, Any]:
    return {"method": "ie-ft", **fields}


# The rivals of the claims about what is best, as the sources list them.
OTHER_MEASURES = (
    *(_ie(inherit=measure) for measure in ("l2", "cosine", "partial-l2")),
    *(_ie(explore=measure) for measure in ("l2", "partial-l2", "orthogonal", "cka")),
)
OTHER_SPLITS = tuple(_ie(split_ratio=ratio) for ratio in (0.0, 0.25, 0.75, 1.0))
OTHER_WEIGHTS = tuple(
    _ie(inherit_weight=w, explore_weight=w) for w in (1.0, 5.0, 10.0, 100.0, 500.0)
)
# The sources do not say what IE was compared with. FT is its base; inheritance alone differs from it by nothing but exploration.
WITHOUT_EXPLORATION = (_method("ft"), _ie(explore="none"))
BOLD_PAIR = {"dataset": "cifar10", "teacher": "resnet56", "student": "resnet20"}

CLAIMS = (
    Claim(
        "ie-ft",
        "T",
        "IE-FT ends with a lower error than FT.",
        _ie(),
        (_method("ft"),),
        caveat=f"{HEAVIER}; the next row compares them at one weight",
    ),
    # FT's published weight is ten times IE-FT's: the pair above differs in weight as well as in method, this one does not.
    Claim(
        "ie-ft-weight",
        "X",
        "At FT's own weight, 500 on the inheritance, IE-FT ends below FT.",
        _ie(inherit_weight=500.0),
        (_method("ft"),),
    ),
    Claim(
        "ie-at",
        "T",
        "IE-AT ends with a lower error than AT.",
        _method("ie-at"),
        (_method("at"),),
        caveat=OURS.format("IE-AT"),
    ),
    Claim(
        "ie-od",
        "T",
        "IE-OD ends with a lower error than OD.",
        _method("ie-od"),
        (_method("od"),),
        caveat=OURS.format("IE-OD"),
    ),
    Claim(
        "below-teacher",
        "T",
        "ResNet-20 taught by ResNet-56 with IE-FT ends below its teacher's error on CIFAR-10.",
        _ie(),
        (TEACHER,),
        BOLD_PAIR,
    ),
    Claim(
        "below-teacher-od",
        "T",
        "ResNet-20 taught by ResNet-56 with IE-OD ends below its teacher's error on CIFAR-10.",
        _method("ie-od"),
        (TEACHER,),
        BOLD_PAIR,
        caveat=OURS.format("IE-OD"),
    ),
    Claim(
        "exploration",
        "X",
        "Exploration adds to inheritance: both losses together beat inheritance alone.",
        _ie(),
        (_ie(explore="none"),),
    ),
    Claim(
        "exploration-weight",
        "X",
        "Exploration adds to inheritance at FT's own weight, 500, too.",
        _ie(inherit_weight=500.0),
        (_ie(inherit_weight=500.0, explore="none"),),
    ),
    Claim(
        "inheritance",
        "X",
        "Inheritance adds to exploration: both losses together beat exploration alone.",
        _ie(),
        (_ie(inherit="none"),),
    ),
    Claim(
        "measure",
        "A",
        "L1 is the best similarity measure.",
        _ie(),
        OTHER_MEASURES,
        caveat="one side changed at a time",
    ),
    Claim("split", "A", "Splitting the channels 50/50 is best.", _ie(), OTHER_SPLITS),
    Claim(
        "weights",
        "A",
        "The weights 50 and 50 are best.",
        _ie(),
        OTHER_WEIGHTS,
        caveat="both changed together",
    ),
    Claim(
        "small-teacher",
        "B",
        "A small teacher helps a large student with IE: it ends below the same student alone.",
        _ie(),
        (_method("supervised"),),
        swapped=True,
    ),
    Claim(
        "small-teacher-kd",
        "B",
        "Plain KD from a small teacher harms a large student.",
        _method("supervised"),
        (_method("kd"),),
        swapped=True,
    ),
    Claim(
        "ie-dml",
        "A",
        "IE-DML ends with a lower error than DML.",
        _method("ie-dml"),
        (_method("dml"),),
        caveat="the list of IE-DML's steps is lost: their order is ours",
    ),
    Claim(
        "diversity",
        "A",
        "IE makes the features more diverse (lower CKA between them).",
        _ie(),
        WITHOUT_EXPLORATION,
        metric="cka_halves",
        caveat=TWICE,
    ),
    Claim(
        "flatness",
        "A",
        "IE finds flatter minima (the loss grows less under Gaussian noise on the weights).",
        _ie(),
        WITHOUT_EXPLORATION,
        metric="rise_train",
        caveat=TWICE,
    ),
    Claim(
        "imagenet",
        "A",
        "On ImageNet, ResNet-34 to ResNet-18, IE-KD lowers top-1 error from 29.91 to 28.19 %.",
    ),
    Claim("voc", "A", "On PASCAL VOC detection, IE raises the mAP from 71.61 to 73.51."),
)


def decisive(runs: pd.DataFrame, configs: Sequence[RunConfig]) -> pd.DataFrame:
    """Of some arms' runs those on confirmatory seeds, if every arm has at least two; else those on the pilot's seeds."""
    of_an_arm = runs[runs["variant"].isin([c.variant for c in configs])]
    late = of_an_arm[of_an_arm["seed"] >= CONFIRMATORY]
    counts = late.groupby("variant")["seed"].nunique()
    enough = all(counts.get(c.variant, 0) >= 2 for c in configs)
    return (late if enough else of_an_arm[of_an_arm["seed"] < CONFIRMATORY]).reset_index(drop=True)


def phase(runs: pd.DataFrame) -> str:
    """Which seeds these runs have, as a sentence."""
    if runs.empty:
        return f"There are {NO_RUNS}."
    numbers = f"seeds {runs['seed'].min()} to {runs['seed'].max()}"
    kind = (
        "confirmatory runs"
        if runs["seed"].min() >= CONFIRMATORY
        else "runs of the pilot, seen before the protocol was fixed"
    )
    return f"These are {len(runs)} {kind} ({numbers})."
