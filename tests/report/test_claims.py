from frames import frame

from iekd.config import RunConfig
from iekd.report.arms import decisive
from iekd.report.phrases import phase


def test_confirmatory_seeds_decide_as_soon_as_every_arm_has_two():
    configs = [RunConfig.create("class", method=m) for m in ("kd", "ft")]
    early = [({"method": m}, {0: 30.0, 1: 31.0, 100: 32.0, 101: 33.0}) for m in ("kd",)]
    partly = frame("class", *early, ({"method": "ft"}, {0: 30.0, 1: 31.0, 100: 32.0}))
    assert set(decisive(partly, configs)["seed"]) == {0, 1}
    enough = frame(
        "class",
        *early,
        ({"method": "ft"}, {0: 30.0, 100: 32.0, 101: 31.0}),
        ({"method": "at"}, {100: 1.0}),
    )
    late = decisive(enough, configs)
    assert set(late["seed"]) == {100, 101} and set(late["method"]) == {"kd", "ft"}
    assert "4 confirmatory runs (seeds 100 to 101)" in phase(late)
    assert "pilot" in phase(decisive(partly, configs))
    assert phase(partly.iloc[:0]) == "There are no runs yet."
