from frames import frame

from iekd.config import RunConfig
from iekd.report import claims


def test_confirmatory_seeds_decide_as_soon_as_every_arm_has_two():
    configs = [RunConfig.create("class", method=m) for m in ("kd", "ft")]
    early = [({"method": m}, {0: 30.0, 1: 31.0, 100: 32.0, 101: 33.0}) for m in ("kd",)]
    partly = frame("class", *early, ({"method": "ft"}, {0: 30.0, 1: 31.0, 100: 32.0}))
    assert set(claims.decisive(partly, configs)["seed"]) == {0, 1}
    enough = frame(
        "class",
        *early,
        ({"method": "ft"}, {0: 30.0, 100: 32.0, 101: 31.0}),
        ({"method": "at"}, {100: 1.0}),
    )
    decisive = claims.decisive(enough, configs)
    assert set(decisive["seed"]) == {100, 101} and set(decisive["method"]) == {"kd", "ft"}
    assert "4 confirmatory runs (seeds 100 to 101)" in claims.phase(decisive)
    assert "pilot" in claims.phase(claims.decisive(partly, configs))
    assert claims.phase(partly.iloc[:0]) == "There are no runs yet."
