"""The first page's sentence and figure say what the board says, whatever it says."""

import numpy as np
import pandas as pd
import pytest

from iekd.report import answer
from iekd.report.verdicts import SIGNS


def board(*verdicts, preset="class"):
    """Claims with these verdicts; those that are not tested have no numbers."""
    rows = []
    for k, verdict in enumerate(verdicts):
        tested = verdict != "not tested"
        numbers = dict(effect=-1.0 - k, low=-2.0 - k, high=-0.5 - k, p=0.01, p_holm=0.02)
        row = numbers if tested else dict.fromkeys(numbers, np.nan)
        row |= dict(p=np.nan, p_holm=np.nan) if verdict == "open" else {}
        about = {"id": f"claim{k}", "preset": preset, "sentence": f"Claim {k} holds."}
        row |= {"metric": "", "n": 20 if tested else 0, "rival": "FT"}
        rows.append({**about, **row, "verdict": verdict})
    return pd.DataFrame(rows)


def test_every_verdict_has_its_sign_and_counts_or_not():
    assert answer.LOOK.keys() == SIGNS.keys() - {"not tested"}
    assert {*answer.FOUND} == SIGNS.keys() - {"open", "not tested"}


@pytest.mark.parametrize(
    "verdicts, words",
    [
        (
            ["supported"] * 2 + ["inconclusive"],
            "3 claims have been tested: 2 supported and 1 inconclusive.",
        ),
        (["equivalent", "open", "not tested"], "1 claim has been tested: 1 equivalent."),
        (
            ["contradicted", "supported", "equivalent", "inconclusive"],
            "4 claims have been tested: 1 supported, 1 contradicted, 1 equivalent and 1 inconclusive.",
        ),
    ],
)
def test_the_verdicts_are_counted(verdicts, words):
    assert words in answer.sentence(board(*verdicts))


@pytest.mark.parametrize("verdicts", [["not tested"], ["open", "not tested"]])
def test_what_is_not_decided_is_no_answer(verdicts):
    assert answer.sentence(board(*verdicts, preset="paper")) == (
        "At paper scale, no claim has been tested yet."
    )


def test_the_heart_of_the_method_is_told_in_numbers():
    told = board("contradicted", "supported", "inconclusive").assign(
        id=["ie-ft", "other", "exploration"]
    )
    text = answer.sentence(told)
    assert "*Claim 0 holds*: **contradicted** (−1.00 points [−2.00, −0.50], 20 pairs" in text
    assert "*Claim 2 holds*: **inconclusive**" in text and "Claim 1" not in text


def test_a_claim_that_nothing_tests_says_why_instead_of_numbers():
    row = {"sentence": "A ends below B.", "verdict": "not tested", "n": 0, "note": "no runs yet"}
    assert answer.told(row) == "*A ends below B*: **not tested** (no runs yet)."


def test_in_brief_claims_stand_by_their_verdict():
    told = answer.by_verdict(board("contradicted", "supported", "supported"))
    assert told == (
        "**supported**: *Claim 1 holds* (−2.00 points); *Claim 2 holds* (−3.00 points); "
        "**contradicted**: *Claim 0 holds* (−1.00 points)."
    )
    assert answer.by_verdict(board("not tested")) == "**not tested**: *Claim 0 holds*."


def test_without_an_interval_the_points_keep_their_unit():
    shown = board("open").assign(n=2, low=float("nan"), high=float("nan"))
    (row,) = shown.to_dict("records")
    assert "(−1.00 points, no interval, 2 pairs" in answer.told(row)


def test_an_open_claim_is_told_without_a_p():
    """Looked at after every seed, 5 % would be passed by chance far more often than that."""
    decided, unfinished = board("inconclusive", "open").to_dict("records")
    assert answer.told(decided).endswith("20 pairs, p = 0.020).")
    assert answer.told(unfinished).endswith("[−3.00, −1.50], 20 pairs).")


def test_the_figure_has_a_row_for_every_claim_with_a_number():
    shown = answer.picture(board("supported", "open", "not tested", "contradicted"))
    labels = [text.get_text() for text in shown.axes[0].get_yticklabels()]
    assert labels == ["Claim 0 holds.", "Claim 1 holds.", "Claim 3 holds."]
    (legend,) = shown.legends
    assert [t.get_text() for t in legend.get_texts()] == ["✔ supported", "… open", "✘ contradicted"]
