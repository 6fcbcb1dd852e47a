import base64
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from frames import frame
from scipy import stats

from iekd import records
from iekd.report.claims import CLAIMS, FAMILIES, PLANNED, Claim
from iekd.report.contrast import examine, sensitivity
from iekd.report.verdicts import board, board_html

TEACHER, IE, FT = {"role": "teacher"}, {"method": "ie-ft"}, {"method": "ft"}
NOISE = (0.0, 0.3, -0.2, 0.1, -0.1)
WOBBLE = (0.01, -0.02, 0.0, 0.02, -0.01)  # so that no difference is constant


@pytest.fixture
def committed_store(monkeypatch):
    monkeypatch.setenv("IEKD_RUNS", str(Path(__file__).parents[2] / "runs"))


@pytest.fixture(autouse=True)
def five_seeds_are_planned(monkeypatch):
    monkeypatch.setitem(PLANNED, "class", 5)


def arm(mean: float, sign: int = 1, **fields) -> tuple[dict, dict[int, float]]:
    """An arm of IE-FT whose seeds share their noise with all other arms."""
    values = {
        100 + k: mean + n + sign * w for k, (n, w) in enumerate(zip(NOISE, WOBBLE, strict=True))
    }
    return {**IE, **fields}, values


def verdicts(*arms, preset="class") -> dict[str, str]:
    return board(frame(preset, *arms), preset).set_index("id")["verdict"].to_dict()


def test_every_verdict():
    found = verdicts(
        arm(40.0),
        arm(41.0, -1, method="ft"),
        arm(39.0, -1, explore="none"),
        ({**IE, "inherit": "none"}, {100: 45.0, 101: 37.0, 102: 41.0, 103: 38.0, 104: 40.0}),
    )
    assert found["ie-ft"] == "supported"
    assert found["exploration"] == "contradicted"
    assert found["inheritance"] == "inconclusive"
    assert found["ie-at"] == found["imagenet"] == found["below-teacher"] == "not tested"


def test_without_runs_nothing_is_tested():
    table = board(frame("class", arm(40.0)).iloc[:0], "class")
    assert set(table["verdict"]) == {"not tested"}
    commands = {note for note in table["note"] if note.startswith("iekd run ")}
    assert len(commands) == 2
    assert set(table["note"]) - commands == {"no runs yet", "no analysed runs yet"}
    assert len(table) == len(CLAIMS)


def test_one_seed_is_no_test():
    table = board(frame("class", (IE, {100: 40.0}), (FT, {100: 41.0})), "class").set_index("id")
    assert (
        table.loc["ie-ft", "verdict"] == "not tested"
        and "two common seeds" in table.loc["ie-ft", "note"]
    )


def test_teacher_is_the_one_that_taught_and_counts_once():
    # seven students of five teachers: seeds 5 and 6 learn from teachers 0 and 1
    teachers = {0: 6.4, 1: 6.9, 2: 6.5, 3: 6.6, 4: 6.7}
    students = {k: teachers[k % 5] - 0.2 + 0.001 * k for k in range(7)}
    runs = frame("paper", (TEACHER, {**teachers, 7: 1.0}), (IE, students))  # 7 teaches nobody
    row = board(runs, "paper").set_index("id").loc["below-teacher"]
    assert row["verdict"] == "reproduced" and row["n"] == 5 and row["rival"] == "Teacher"
    assert row["effect"] == pytest.approx(-0.2 + 0.001 * np.mean([2.5, 3.5, 2, 3, 4]))
    assert "5 teachers, p" in board_html(board(runs, "paper"), "Claims")
    few = (
        board(
            frame("paper", (TEACHER, teachers), (IE, {k: students[k] for k in range(3)})), "paper"
        )
        .set_index("id")
        .loc["below-teacher"]
    )
    assert few["verdict"] == "open" and "3 of 5 planned seeds" in few["note"] and few["n"] == 3


def test_of_an_arm_that_we_had_to_construct_nothing_is_reproduced():
    arms = arm(6.0, method="ie-at"), arm(7.0, -1, method="at")
    arms = [(fields, dict(enumerate(values.values()))) for fields, values in arms]
    assert verdicts(*arms, preset="paper")["ie-at"] == "supported"


def test_reproduced_is_kept_for_the_papers_own_recipe():
    arms = arm(40.0), arm(41.0, -1, method="ft"), arm(39.0, -1, explore="none")
    own = verdicts(*arms, preset="paper")
    assert (
        own["ie-ft"] == "reproduced" and own["exploration"] == "contradicted"
    )  # that claim is our reading
    other = [({**fields, "dataset": "cifar100"}, errors) for fields, errors in arms]
    assert (
        board(frame("paper", *other), "paper", dataset="cifar100")
        .set_index("id")
        .loc["ie-ft", "verdict"]
        == "supported"
    )
    lower = verdicts(arm(40.0), arm(39.0, -1, method="ft"), preset="paper")
    assert lower["ie-ft"] == "not reproduced"


PAIRS = ("l2", "l2"), ("cosine", "orthogonal"), ("partial-l2", "partial-l2"), ("cosine", "cka")
MEASURES = [dict(inherit=pull, explore=push) for pull, push in PAIRS]


def measure(means: list[float]) -> dict:
    rivals = [arm(m, -1, **fields) for m, fields in zip(means, MEASURES, strict=False)]
    return (
        board(frame("class", arm(40.0), *rivals), "class").set_index("id").loc["measure"].to_dict()
    )


def analysed(*means: float) -> dict:
    """The row on diversity when IE-FT, FT and inheritance alone have these mean CKAs."""
    arms = [
        arm(40.0 - m, 1 if k else -1, **fields)
        for k, (m, fields) in enumerate(zip(means, CKA_ARMS, strict=False))
    ]
    table = frame("class", *arms)
    table["cka_halves"] = 40.0 - table["last"]
    return board(table, "class").set_index("id").loc["diversity"].to_dict()


CKA_ARMS = [{}, {"method": "ft"}, {"explore": "none"}]


def test_a_claim_about_another_metric_looks_at_that_metric():
    row = analysed(0.4, 0.9, 0.8)
    assert row["verdict"] == "supported" and row["metric"] == "cka_halves" and row["n"] == 5
    assert (
        row["effect"] == pytest.approx(-0.4) and row["rival"] == "inheritance only (L1)"
    )  # the closer rival decides
    assert analysed(0.4, 0.9, 0.1)["verdict"] == "contradicted"
    close = analysed(0.4, 0.9, 0.401)
    assert (
        close["verdict"] == "inconclusive" and "±" not in close["note"]
    )  # a smallest difference is fixed for errors only
    assert (
        "against the other rival, FT: −0.500 [" in close["note"]
        and "10 times IE-FT's" in close["note"]
    )
    assert "contradicted" in verdicts(arm(40.0), arm(39.0, -1, method="ft")).values()
    unmeasured = (
        board(frame("class", arm(40.0), arm(39.0, -1, method="ft")), "class")
        .set_index("id")
        .loc["diversity"]
    )
    assert unmeasured["verdict"] == "not tested" and unmeasured["note"] == "no analysed runs yet"


def test_the_board_names_the_metric():
    table = frame("class", arm(40.0), arm(41.0, -1, method="ft"), arm(42.0, -1, explore="none"))
    table["cka_halves"] = table["last"] / 1000
    tree = ElementTree.fromstring(board_html(board(table, "class"), "Claims"))
    row = next(row for row in tree.iter("tr") if row.get("id") == "claim-diversity")
    assert (
        "CKA between the two halves of the student's feature: −0.001 [−0.001, −0.001]"
        in "".join(row.itertext())
    )


def test_a_verdict_says_that_its_student_under_fits():
    def label(kept, *arms):
        table = frame("class", *arms)
        table = board(table.assign(last_train=kept * table["last"]), "class")
        shown = str(board_html(table, "Claims")).partition("</caption>")[2]
        return table.set_index("id").loc["ie-ft", "kept"], "under-fit" in shown

    arms = arm(40.0), arm(41.0, -1, method="ft"), arm(45.0, method="supervised")
    assert label(0.6, *arms) == (pytest.approx(0.6), True)
    assert label(0.4, *arms) == (pytest.approx(0.4), False)
    # without the student alone its pair tells, and without training errors nothing is said
    assert label(0.6, *arms[:2]) == (pytest.approx(0.6), True)
    unknown, shown = label(np.nan, *arms)
    assert np.isnan(unknown) and not shown
    # the student alone decides, whatever the arms are
    table = frame("class", *arms)
    alone = table["method"].eq("supervised")
    table["last_train"] = table["last"] * np.where(alone, 0.7, 0.1)
    assert board(table, "class").set_index("id").loc["ie-ft", "kept"] == pytest.approx(0.7)


def test_best_of_many():
    assert measure([41, 42, 41, 43])["verdict"] == "supported"
    # one rival is as good
    assert measure([41, 42, 41, 40.001])["verdict"] == "inconclusive"
    assert measure([40.001] * 4)["verdict"] == "equivalent"  # all are
    beaten = measure([41, 42, 41, 39])
    assert beaten["verdict"] == "contradicted"
    assert beaten["rival"] == "IE-FT (inherit cosine, explore CKA)"
    # better than all that was tried, but not all was tried
    partial = measure([41, 42])
    assert (
        partial["verdict"] == "open"
        and "2 of 4" in partial["note"]
        and "not every rival" in partial["note"]
    )
    # worse than one of two settles it
    assert measure([41, 39])["verdict"] == "contradicted"


def test_a_verdict_is_open_until_all_seeds_are_there(monkeypatch):
    arms = arm(40.0), arm(41.0, -1, method="ft")
    assert verdicts(*arms)["ie-ft"] == "supported"
    monkeypatch.setitem(PLANNED, "class", 6)
    row = board(frame("class", *arms), "class").set_index("id").loc["ie-ft"]
    assert row["verdict"] == "open" and "5 of 6 planned seeds" in row["note"] and row["n"] == 5


def test_the_pilot_shows_and_does_not_decide(monkeypatch):
    monkeypatch.setitem(PLANNED, "class", 20)
    early = [
        (fields, {k - 100: v for k, v in values.items()})
        for fields, values in (arm(40.0), arm(41.0, -1, method="ft"))
    ]
    row = board(frame("class", *early), "class").set_index("id").loc["ie-ft"]
    assert (
        row["verdict"] == "open"
        and "pilot seeds only" in row["note"]
        and row["effect"] == pytest.approx(-1.0)
    )


def test_a_rehearsal_at_desk_scale_is_shown_nowhere():
    """Seed 0 finds faults; only seeds from 300 on are evidence, whatever the rehearsal said."""
    rehearsed = frame(
        "desk", (IE, dict.fromkeys(range(8), 9.0)), (FT, dict.fromkeys(range(8), 8.0))
    )
    assert examine(rehearsed, CLAIMS[0], "desk").contrasts == ()
    counted = {seed: 9.0 + 0.01 * (seed % 3) for seed in range(300, 308)}
    both = frame("desk", (IE, {0: 90.0, **counted}), (FT, {0: 9.0, **dict.fromkeys(counted, 9.5)}))
    assert examine(both, CLAIMS[0], "desk").contrasts[0].result.n == 8


def test_how_large_a_difference_is_stands_beside_it():
    def note(*arms):
        return board(frame("class", *arms), "class").set_index("id").loc["ie-ft-weight", "note"]

    ours = {"inherit_weight": 500}
    assert "may be smaller" in note(arm(40.0, **ours), arm(40.3, -1, method="ft"))
    assert "may be smaller" not in note(arm(40.0, **ours), arm(41.0, -1, method="ft"))
    assert note(arm(40.0, **ours), arm(40.0, -1, method="ft")).startswith("interval within ±0.5")
    row = (
        board(frame("class", arm(40.0), arm(41.0, -1, method="ft")), "class")
        .set_index("id")
        .loc["ie-ft"]
    )
    assert "10 times" in row["note"]


def test_contrasts_look_at_a_difference_in_other_ways():
    rng = np.random.default_rng(0)
    x = {seed: 40 + 0.1 * rng.standard_normal() + 0.3 * (seed % 5) for seed in range(100, 110)}
    y = {seed: 40.5 + 0.1 * rng.standard_normal() for seed in x}
    row = (
        sensitivity(
            frame("class", (IE, x), (FT, y), (IE, {0: 39.0, 1: 39.4}), (FT, {0: 40.0, 1: 40.0}))
        )
        .set_index("claim")
        .loc["ie-ft"]
    )
    d = np.array([x[k] - y[k] for k in x])
    means = np.array([d[[k % 5 == t for k in x]].mean() for t in range(5)])
    assert (
        row["n"] == 10
        and row["effect"] == pytest.approx(d.mean())
        and row["pilot"] == pytest.approx(-0.8)
    )
    assert row["p_wilcoxon"] == pytest.approx(stats.wilcoxon(d).pvalue)
    limits = stats.t.interval(0.95, 4, means.mean(), stats.sem(means))
    assert (row["low_teachers"], row["high_teachers"]) == pytest.approx(limits)
    assert row["p_teachers"] == pytest.approx(stats.ttest_1samp(means, 0).pvalue)
    assert row["low_teachers"] < row["low"]  # students of one teacher are alike here
    assert row["two_versions"] == 0
    power = stats.nct.sf(stats.t.ppf(0.975, 9), 9, row["detectable"] / row["sd"] * 10**0.5)
    assert power == pytest.approx(0.8, abs=1e-3)


def test_small_teacher_swaps_the_roles():
    pair, alone = (
        dict(teacher="resnet8", student="resnet20"),
        arm(21.0, -1, method="supervised", student="resnet20"),
    )
    assert verdicts(arm(20.0, teacher_epochs=15, **pair), alone)["small-teacher"] == "supported"
    assert (
        verdicts(arm(20.0, **pair), alone)["small-teacher"] == "not tested"
    )  # by a teacher that was trained for longer


def test_board_html():
    table = board(frame("class", arm(40.0), arm(41.0, -1, method="ft")), "class")
    tree = ElementTree.fromstring(board_html(table, "Claims & verdicts"))
    words = ["".join(td.itertext()) for td in tree.iter("td") if "verdict" in td.get("class", "")]
    assert (
        words[0] == "✔ supportedclass scale"
        and words[1] == "○ not testedclass scale"
        and len(words) == len(CLAIMS)
    )
    assert all(th.get("scope") for th in tree.iter("th"))
    assert tree.find(".//div[@class='ie-foot']//code").text == "iekd sweep runs/*.yaml"
    lines = (
        base64.b64decode(tree.find(".//a[@class='ie-download']").get("href").partition(",")[2])
        .decode()
        .splitlines()
    )
    assert len(lines) == 1 + len(CLAIMS) and {"verdict", "effect", "p_holm"} <= set(
        lines[0].split(",")
    )
    paper = ElementTree.fromstring(board_html(board(frame("class", arm(40.0)), "paper"), "Claims"))
    assert paper.find(".//div[@class='ie-foot']//code").text == "iekd sweep runs/paper/*.yaml"


def test_pairs_of_two_versions_are_counted(committed_store):
    claim = Claim("cka", "X", "L1 is better.", IE, ({**IE, "explore": "cka"},))
    row = sensitivity(records.load(preset="class"), claims=(claim,)).iloc[0]
    assert row["n"] == 20 and row["two_versions"] == 14  # of its seeds 106 to 119


def test_a_board_says_how_many_of_its_pairs_are_of_two_versions(committed_store):
    table = board(records.load(preset="class"), "class", FAMILIES["controls"])
    assert list(table["two_versions"]) == list(table["n"]) and table["n"].sum() == 80
    said = "In 80 of the 80 pairs the two runs have different versions of PyTorch."
    assert said in board_html(table, "The controls")
    same = board(frame("class", arm(40.0), arm(41.0, -1, method="ft")), "class")
    assert not same["two_versions"].any() and "PyTorch" not in board_html(same, "Claims")


def test_no_verdict_contradicts_its_corrected_p(committed_store):
    table = board(records.load(preset="class"))
    tree = ElementTree.fromstring(board_html(table, "Claims"))
    cells = {tr.get("id"): tr.find("td[1]") for tr in tree.iter("tr") if tr.get("id")}
    tested = table[table["n"] > 0]
    for row in tested.itertuples():
        decided = (
            {True: "supported", False: "contradicted"}[row.effect < 0]
            if row.p_holm < 0.05
            else None
        )
        cell = cells[f"claim-{row.id}"]
        assert decided == (row.verdict if row.verdict in ("supported", "contradicted") else None), (
            row
        )
        assert cell.get("class") == f"verdict {row.verdict}" and (
            "".join(cell.itertext())[0] in "✔✘"
        ) == bool(decided)
        inside = max(-row.low, row.high) < 0.5 and not row.metric
        assert (
            row.verdict == "equivalent" if inside and not decided else row.verdict != "equivalent"
        )
    assert set(tested["verdict"]) == {"supported", "contradicted", "equivalent", "inconclusive"}


def test_a_family_of_claims_has_its_own_data_set_seeds_and_correction():
    wobble = np.random.default_rng(0).normal(0, 0.1, 10)
    fields = dict(dataset="imagenette", epochs=30, lr=0.2)
    arms = {"ie-ft": IE, "none": {**IE, "explore": "none"}}
    arms["shuffled"] = {**IE, "explore_target": "shuffled"}
    levels = {"ie-ft": -0.5, "none": 0.0, "shuffled": -0.5}

    def of(count):
        parts = []
        for sign, (name, arm) in zip((1, -1, 0), arms.items(), strict=True):
            errors = {100 + k: 30 + sign * wobble[k] for k in range(count)}
            part = frame("class", (arm, errors), **fields)
            lost = levels[name] + sign * wobble[:count]
            parts.append(part.assign(explore_lost=lost, explore_agrees=0 * lost + sign * wobble[0]))
        found = board(pd.concat(parts), "class", FAMILIES["looks"])
        shown = str(board_html(found, "Looks", "iekd sweep x"))
        assert 'class="ie-fold' not in shown[:200]
        # for what is no error no smallest difference was fixed
        assert "equivalent" not in shown and "inconclusive, which does not prove" in shown
        return found.set_index("id")

    table = of(10)
    verdict = table["verdict"]
    assert verdict["looks-deletion"] == "supported" and table.loc["looks-deletion", "n"] == 10
    assert verdict["looks-deletion-shuffled"] == "inconclusive"
    assert table.loc["looks-deletion", "p_holm"] == pytest.approx(
        table["p"].notna().sum() * table.loc["looks-deletion", "p"]
    )
    # an open claim has a difference and no p, neither on the page nor in its CSV
    unfinished = of(9)
    assert set(unfinished["verdict"]) == {"open"} and unfinished["effect"].notna().all()
    assert unfinished[["p", "p_holm"]].isna().all(axis=None)
