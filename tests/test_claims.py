import base64
from xml.etree import ElementTree

import pytest
from frames import frame

from iekd import claims
from iekd.claims import CLAIMS, board, board_html
from iekd.config import RunConfig

TEACHER, IE, FT = {"role": "teacher"}, {"method": "ie-ft"}, {"method": "ft"}
NOISE = (0.0, 0.3, -0.2, 0.1, -0.1)
WOBBLE = (0.01, -0.02, 0.0, 0.02, -0.01)  # so that no difference is constant


def arm(mean: float, sign: int = 1, **fields) -> tuple[dict, dict[int, float]]:
    """An arm of IE-FT whose seeds share their noise with all other arms."""
    values = {k: mean + n + sign * w for k, (n, w) in enumerate(zip(NOISE, WOBBLE, strict=True))}
    return {**IE, **fields}, values


def verdicts(*arms, preset="class") -> dict[str, str]:
    return board(frame(preset, *arms), preset).set_index("id")["verdict"].to_dict()


def test_every_verdict():
    found = verdicts(
        arm(40.0), arm(41.0, -1, method="ft"), arm(39.0, -1, explore="none"),
        ({**IE, "inherit": "none"}, {0: 45.0, 1: 37.0, 2: 41.0, 3: 38.0, 4: 40.0}),
    )  # fmt: skip
    assert found["ie-ft"] == "reproduced"
    assert found["exploration"] == "not reproduced"
    assert found["inheritance"] == "not distinguishable"
    assert found["ie-at"] == found["imagenet"] == found["below-teacher"] == "not tested"


def test_without_runs_nothing_is_tested():
    table = board(frame("class", arm(40.0)).iloc[:0], "class")
    assert set(table["verdict"]) == {"not tested"} and set(table["note"]) == {"no runs yet", "no analysed runs yet"}
    assert len(table) == len(CLAIMS)


def test_one_seed_is_no_test():
    table = board(frame("class", (IE, {0: 40.0}), (FT, {0: 41.0})), "class").set_index("id")
    assert table.loc["ie-ft", "verdict"] == "not tested" and "two common seeds" in table.loc["ie-ft", "note"]


def test_teacher_is_the_one_that_taught():
    # seven students of five teachers: seeds 5 and 6 learn from teachers 0 and 1
    teachers = {0: 6.4, 1: 6.9, 2: 6.5, 3: 6.6, 4: 6.7}
    students = {k: teachers[k % 5] - 0.2 + 0.001 * k for k in range(7)}
    row = board(frame("paper", (TEACHER, teachers), (IE, students)), "paper").set_index("id").loc["below-teacher"]
    assert row["verdict"] == "reproduced" and row["n"] == 7
    assert row["effect"] == pytest.approx(-0.2 + 0.003)
    assert row["rival"] == "Teacher"


MEASURES = [dict(inherit=m) for m in ("l2", "cosine", "partial-l2")]
MEASURES += [dict(explore=m) for m in ("l2", "partial-l2", "orthogonal", "cka")]


def measure(means: list[float]) -> dict:
    rivals = [arm(m, -1, **fields) for m, fields in zip(means, MEASURES, strict=False)]
    return board(frame("class", arm(40.0), *rivals), "class").set_index("id").loc["measure"].to_dict()


def analysed(*means: float) -> dict:
    """The board's row about diversity when IE-FT, FT and inheritance alone have these mean CKAs; the errors say the opposite."""
    arms = [arm(40.0 - m, 1 if k else -1, **fields) for k, (m, fields) in enumerate(zip(means, CKA_ARMS, strict=False))]
    table = frame("class", *arms)
    table["cka_halves"] = 40.0 - table["last"]
    return board(table, "class").set_index("id").loc["diversity"].to_dict()


CKA_ARMS = [{}, {"method": "ft"}, {"explore": "none"}]


def test_a_claim_about_another_metric_looks_at_that_metric():
    row = analysed(0.4, 0.9, 0.8)
    assert row["verdict"] == "reproduced" and row["metric"] == "cka_halves" and row["n"] == 5
    assert row["effect"] == pytest.approx(-0.4) and row["rival"] == "inheritance only (L1)"  # the closer rival decides
    assert analysed(0.4, 0.9, 0.1)["verdict"] == "not reproduced"
    close = analysed(0.4, 0.9, 0.401)
    assert close["verdict"] == "not distinguishable" and "no difference of interest" not in close["note"]  # that bound is for errors
    assert "not reproduced" in verdicts(arm(40.0), arm(39.0, -1, method="ft")).values()
    unmeasured = board(frame("class", arm(40.0), arm(39.0, -1, method="ft")), "class").set_index("id").loc["diversity"]
    assert unmeasured["verdict"] == "not tested" and unmeasured["note"] == "no analysed runs yet"


def test_the_board_names_the_metric():
    table = frame("class", arm(40.0), arm(41.0, -1, method="ft"), arm(42.0, -1, explore="none"))
    table["cka_halves"] = table["last"] / 1000
    tree = ElementTree.fromstring(board_html(board(table, "class"), "Claims"))
    row = next(row for row in tree.iter("tr") if row.get("id") == "claim-diversity")
    assert "CKA between the two halves of the student's feature: −0.001 [−0.001, −0.001]" in "".join(row.itertext())


def test_best_of_many():
    assert measure([41, 42, 41, 43, 41, 42, 41])["verdict"] == "reproduced"
    # one rival is as good
    assert measure([41, 42, 40.001, 43, 41, 42, 41])["verdict"] == "not distinguishable"
    beaten = measure([41, 42, 41, 39, 41, 42, 41])
    assert beaten["verdict"] == "not reproduced" and beaten["rival"] == "IE-FT (inherit L1, explore L2)"
    # better than all that was tried, but not all was tried
    partial = measure([41, 42])
    assert partial["verdict"] == "not tested" and "2 of 7" in partial["note"]


def test_small_teacher_swaps_the_roles():
    pair, alone = dict(teacher="resnet8", student="resnet20"), arm(21.0, -1, method="supervised", student="resnet20")
    assert verdicts(arm(20.0, teacher_epochs=15, **pair), alone)["small-teacher"] == "reproduced"
    assert verdicts(arm(20.0, **pair), alone)["small-teacher"] == "not tested"  # by a teacher that was trained for longer


def test_board_html():
    table = board(frame("class", arm(40.0), arm(41.0, -1, method="ft")), "class")
    tree = ElementTree.fromstring(board_html(table, "Claims & verdicts"))
    words = ["".join(td.itertext()) for td in tree.iter("td") if "verdict" in td.get("class", "")]
    assert words[0] == "✔ reproduced" and words[1] == "○ not tested" and len(words) == len(CLAIMS)
    assert all(th.get("scope") for th in tree.iter("th"))
    assert tree.find(".//div[@class='ie-foot']//code").text == "iekd sweep runs/*.yaml"
    lines = base64.b64decode(tree.find(".//a[@class='ie-download']").get("href").partition(",")[2]).decode().splitlines()
    assert len(lines) == 1 + len(CLAIMS) and {"verdict", "effect", "p_holm"} <= set(lines[0].split(","))
    paper = ElementTree.fromstring(board_html(board(frame("class", arm(40.0)), "paper"), "Claims"))
    assert paper.find(".//div[@class='ie-foot']//code").text == "iekd sweep runs/paper/*.yaml"


def test_confirmatory_seeds_decide_as_soon_as_every_arm_has_two():
    configs = [RunConfig.create("class", method=m) for m in ("kd", "ft")]
    early = [({"method": m}, {0: 30.0, 1: 31.0, 100: 32.0, 101: 33.0}) for m in ("kd",)]
    partly = frame("class", *early, ({"method": "ft"}, {0: 30.0, 1: 31.0, 100: 32.0}))
    assert set(claims.decisive(partly, configs)["seed"]) == {0, 1}
    enough = frame("class", *early, ({"method": "ft"}, {0: 30.0, 100: 32.0, 101: 31.0}), ({"method": "at"}, {100: 1.0}))
    decisive = claims.decisive(enough, configs)
    assert set(decisive["seed"]) == {100, 101} and set(decisive["method"]) == {"kd", "ft"}
    assert "4 confirmatory runs (seeds 100 to 101)" in claims.phase(decisive)
    assert "pilot" in claims.phase(claims.decisive(partly, configs))
    assert claims.phase(partly.iloc[:0]) == "There are no runs yet."
