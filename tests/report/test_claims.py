"""The claims are complete: each says where it is from, and names arms that can be run."""

from iekd.config import RunConfig
from iekd.report.claims import CLAIMS, TEACHER, TRUST


def test_every_claim_has_a_source_and_arms_that_exist():
    assert len({claim.id for claim in CLAIMS}) == len(CLAIMS)
    for claim in CLAIMS:
        assert claim.source in TRUST and claim.sentence.endswith(".")
        assert (claim.a is None) == (not claim.b)
        for arm in (claim.a, *claim.b):
            if arm is not None and arm != TEACHER:
                RunConfig.create("paper", **{**claim.fields, **arm})


def test_caveats_state_the_weights_of_the_code():
    text = " ".join(claim.caveat for claim in CLAIMS)
    assert "FT's weight is 10 times IE-FT's" in text and "{" not in text
