"""The paper's claims (claims.yaml): which arm must end below which, and what decides that."""

from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import yaml

from iekd.config import RunConfig

# Where we know a claim from.
TRUST = {
    "T": "the paper's supplement",
    "B": "as reported second-hand (blog)",
    "A": "as reported second-hand",
    "X": "our reading",
}
TEACHER = {"role": "teacher"}  # the arm "the teacher of a"
# The first confirmatory seed; smaller ones are the pilot, seen before the protocol was fixed.
CONFIRMATORY = 100
# The first seed that counts, by preset: smaller ones are rehearsals and are never shown.
REHEARSED = {"desk": 300}
# Seeds of every arm. Until all arms of a claim have them, its verdict is open.
PLANNED = {"smoke": 2, "class": 20, "desk": 8, "paper": 5}
# The smallest difference of interest, in percentage points (the book's protocol says why).
SMALLEST = {"smoke": 0.5, "class": 0.5, "desk": 0.3, "paper": 0.2}
# Messages where nothing can be compared.
NO_RUNS, TOO_FEW, NO_ANALYSIS = "no runs yet", "fewer than two common seeds", "no analysed runs yet"


@dataclass(frozen=True)
class Claim:
    """The claim that arm `a` has a lower error than arm `b` (if several: than each of `b`).

    Arms name the fields that differ from the preset; `TEACHER` is that of `a`. `fields`
    hold for all arms; `swapped` exchanges teacher and student of the preset. A claim about a
    quantity other than the error names its column in `metric` (see `iekd.analysis.metrics`).
    Without `a` nothing can test the claim yet. `caveat` is what a reader of the verdict must know.
    For an arm that we had to construct (`rebuilt`), no result counts as the paper's, reproduced or
    not. `expected`: the verdict that the protocol wrote down beforehand, and `meaning`: what it
    fixed to say about each, where it did.

    Claims of one `family` form their own board and are corrected together; '' is the board of the
    first page. `planned` is the number of seeds of every arm, 0 = `PLANNED` of the preset.
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
    rebuilt: bool = False
    family: str = ""
    planned: int = 0
    expected: str = ""
    meaning: dict[str, str] = field(default_factory=dict)


def _read() -> dict[str, tuple[Claim, ...]]:
    ft, ie = (RunConfig.model_fields[f"{name}_weight"].default for name in ("ft", "inherit"))
    heavier = f"FT's weight is {ft / ie:g} times IE-FT's"
    text = files("iekd.report").joinpath("claims.yaml").read_text(encoding="utf-8")
    claims = yaml.safe_load(text.replace("{heavier}", heavier))
    families: dict[str, tuple[Claim, ...]] = {}
    for found in claims:
        claim = Claim(**{**found, "b": tuple(found.get("b", ()))})
        families[claim.family] = (*families.get(claim.family, ()), claim)
    return families


FAMILIES = _read()
CLAIMS = FAMILIES[""]
