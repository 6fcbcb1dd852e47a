"""Phrases that are right whatever the records say."""

import frames
import pandas as pd
import pytest

from iekd.report import comparison, phrases
from iekd.report.arms import scope
from iekd.report.statistics import paired


def runs(ie: dict[int, float]):
    ft = {0: 10.0, 1: 11.0, 2: 12.0}
    return scope(frames.frame("smoke", ({"method": "ft"}, ft), ({"method": "ie-ft"}, ie)), "smoke")


@pytest.mark.parametrize(
    "ie, start",
    [
        ({0: 9.0, 1: 10.01, 2: 11.02}, "a lower error than FT (−0.99 points, 95 % interval ["),
        ({0: 11.0, 1: 12.01, 2: 13.02}, "a higher error than FT (+1.01 points"),
        (
            {0: 9.0, 1: 12.0, 2: 12.0},
            "an error that differs inconclusively from that of FT (+0.00 points",
        ),
        ({0: 9.99, 1: 11.01, 2: 12.0}, "an error equivalent to that of FT (+0.00 points"),
        (
            {0: 9.0, 1: 12.0},
            "an error that differs inconclusively from that of FT (+0.00 points, no interval, 2 ",
        ),
        (
            {0: 10.5, 1: 11.5, 2: 12.5},
            "an error that differs inconclusively from that of FT (+0.50 points, no interval, 3 "
            "pairs, no spread to test)",
        ),
        ({0: 9.0}, "fewer than two common seeds with FT"),
        ({}, "no runs yet"),
    ],
)
def test_compared(ie, start):
    assert phrases.compared(runs(ie), "ie-ft", "ft").startswith(start)


def test_other_quantities_than_errors_have_a_name_and_no_points():
    found = runs({0: 9.0, 1: 10.01, 2: 11.02})
    found["cka_halves"] = found["last"] / 10
    said = phrases.compared(found, "ie-ft", "ft", "cka_halves", "CKA between the halves")
    assert said.startswith("a lower CKA between the halves than FT (−0.099, 95 % interval [")
    found.loc[found["method"] == "ie-ft", "cka_halves"] = [0.9, 1.2, 1.2]
    said = phrases.compared(found, "ie-ft", "ft", "cka_halves", "CKA between the halves")
    assert said.startswith(
        "a CKA between the halves that differs inconclusively from that of FT (+0.000, "
    )


def test_unknown_baseline():
    assert phrases.compared(runs({0: 9.0}), "ie-ft", "kd") == "no runs yet"


def test_a_family_is_corrected_over_its_own_pairs():
    kd = {0: 10.0, 1: 11.3, 2: 12.1}
    some = [
        ({"method": "ft"}, {0: 10.0, 1: 11.0, 2: 12.0}),
        ({"method": "ie-ft"}, {0: 9.0, 1: 10.01, 2: 11.02}),
        ({"method": "kd"}, kd),
    ]
    found = scope(frames.frame("smoke", *some), "smoke")
    pairs = [("ie-ft", "ft"), ("kd", "ft"), ("at", "ft")]
    low, same, absent = phrases.family(found, pairs)
    assert low.startswith("a lower error than FT (−0.99 points") and same.startswith(
        "an error that differs inconclusively from that of FT (+0.13"
    )
    assert absent == "no runs yet"
    p = [
        paired(found[found["method"] == m].set_index("seed")["last"], pd.Series(some[0][1])).p
        for m in ("ie-ft", "kd")
    ]
    assert same.endswith(f"{phrases.p_text(max(p))})")  # the larger of two is not multiplied


def test_in_brief_the_numbers_of_the_test_are_left_out():
    found = runs({0: 9.0, 1: 10.01, 2: 11.02})
    said = phrases.compared(found, "ie-ft", "ft", brief=True)
    assert said == "a lower error than FT (−0.99 points)"
    said = phrases.compared(runs({0: 9.99, 1: 11.01, 2: 12.0}), "ie-ft", "ft", brief=True)
    assert said == "an error equivalent to that of FT (+0.00 points)"


def test_arms_are_gathered_as_the_table_judges_them():
    of = {
        ("supervised", ""): {0: 10.0, 1: 11.0, 2: 12.0},
        ("ft", ""): {0: 9.0, 1: 10.01, 2: 11.02},
        ("ie-ft", "l1"): {0: 8.0, 1: 9.01, 2: 10.02},
        ("ie-ft", "cka"): {0: 13.0, 1: 14.01, 2: 15.02},
        ("kd", ""): {0: 7.0, 1: 15.0, 2: 11.0},
        ("at", ""): {0: 10.0},
    }
    arms = [({"method": m} | ({"explore": e} if e else {}), v) for (m, e), v in of.items()]
    found = scope(frames.frame("smoke", *arms), "smoke")
    table = comparison.comparison(found, "supervised")
    outcomes = table.set_index("variant")["outcome"]
    assert list(outcomes[outcomes.ne("")].sort_values()) == [
        "higher",
        "inconclusive",
        *2 * ["lower"],
    ]
    assert phrases.gathered(found, "supervised", "ways") == (
        "2 of the 4 ways have a lower error than the student alone, by 0.99 to 1.99 points (FT; "
        "IE-FT); 1 has a higher one, by 3.01 points (IE-FT (inherit L1, explore CKA)); 1 is "
        "inconclusive"
    )
    renamed = found.assign(label=found["label"].replace("FT", "ours"))  # as a page calls them
    assert "ours" in phrases.gathered(renamed, "supervised", variants=["ft"])
    some = phrases.gathered(found, "supervised", variants=["ft", "ie-ft"])
    assert some.startswith("all 2 arms have a lower error than the student alone, by 0.99 to ")
    arms.append(({"method": "od"}, {0: 8.5, 1: 9.52, 2: 10.51}))
    more = phrases.gathered(scope(frames.frame("smoke", *arms), "smoke"), "supervised")
    assert more.startswith("3 of the 5 arms have a lower error than the student alone, by 0.99 to ")
    assert "1.99 points (most: IE-FT); 1 has a higher one" in more
    assert phrases.gathered(found, "od") == phrases.gathered(found, "ft", variants=["at"])
    assert phrases.gathered(found, "od") == "no runs yet"
