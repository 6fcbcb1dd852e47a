"""The claims are complete: each says where it is from, and names arms that can be run."""

from pathlib import Path

import pytest

from iekd.config import RunConfig, grid
from iekd.report.claims import FAMILIES, TEACHER, TRUST
from iekd.report.comparison import METRICS
from iekd.report.verdicts import PAPERS_OWN, SIGNS

RUNS = Path(__file__).parents[2] / "runs"
EVERY = [claim for family in FAMILIES.values() for claim in family]


def test_every_claim_has_a_source_and_arms_that_exist(own_losses):
    grid.read(RUNS / "mirror" / "grid.yaml")  # its losses are registered by a file beside it
    assert len({claim.id for claim in EVERY}) == len(EVERY)
    for claim in EVERY:
        assert claim.source in TRUST and claim.sentence.endswith(".")
        assert (claim.a is None) == (not claim.b) and claim.metric in ("", *METRICS)
        for arm in (claim.a, *claim.b):
            if arm is not None and arm != TEACHER:
                RunConfig.create("paper", **{**claim.fields, **arm})


def test_what_the_protocol_says_of_a_verdict_is_there_for_each_that_can_come_out():
    explained = [claim for claim in EVERY if claim.meaning]
    assert explained
    for claim in explained:
        assert claim.meaning.keys() == SIGNS.keys() - {*PAPERS_OWN.values(), "not tested"}


def test_what_was_expected_is_what_the_protocol_wrote_down():
    protocol = (RUNS.parent / "book" / "campaign.ipynb").read_text(encoding="utf-8")
    written = "the first equivalent, the second in favour of centred L1, the third equivalent"
    assert f"**Expected**: {written}." in protocol
    expected = [claim.expected for claim in EVERY if claim.expected]
    assert expected == ["equivalent", "supported", "equivalent"]


def test_caveats_state_the_weights_of_the_code():
    text = " ".join(claim.caveat for claim in EVERY)
    assert "FT's weight is 10 times IE-FT's" in text and "{" not in text


@pytest.mark.parametrize(
    ("file", "families"),
    [("imagenette.yaml", ("imagenette", "looks", "neurons")), ("detection.yaml", ("detection",))],
)
def test_the_arms_of_a_family_are_those_of_its_grid(file, families):
    """With its epochs and rate: else the runs would be there, and the claims find none."""
    known = {config.variant for config in grid.read(RUNS / file)}
    for claim in (claim for family in families for claim in FAMILIES[family]):
        for arm in (claim.a, *claim.b):
            assert RunConfig.create("class", **{**claim.fields, **arm}).variant in known, claim.id
