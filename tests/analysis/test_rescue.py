"""The teacher's mistakes: counts against loops, and the rule that picks the images of a figure."""

import pytest
import torch

from iekd.analysis.rescue import pick, rescue


def test_who_repeats_the_mistakes_of_the_teacher():
    torch.manual_seed(0)
    labels, teacher, alone, ie = torch.randint(0, 3, (4, 300))
    found = rescue(labels, teacher, alone, ie)
    rows = list(zip(*(answers.tolist() for answers in (labels, teacher, alone, ie)), strict=True))
    assert found.alike == sum(t != y and a == t for y, t, a, _ in rows)
    assert found.rescued == sum(t != y and a == t and i == y for y, t, a, i in rows)
    assert found.alike_ie == sum(t != y and i == t for y, t, _, i in rows)
    assert found.lost == sum(t != y and i == t and a == y for y, t, a, i in rows)
    swapped = rescue(labels, teacher, ie, alone)
    assert (swapped.rescued, swapped.lost, swapped.p) == (found.lost, found.rescued, found.p)
    labels, wrong = torch.zeros(10, dtype=torch.long), torch.ones(10, dtype=torch.long)
    assert rescue(labels, wrong, wrong, labels) == (10, 10, 0, 0, pytest.approx(2 / 2**10))
    assert rescue(labels, labels, labels, labels).p == 1


def test_the_rule_that_picks_images():
    labels = torch.tensor([0, 1, 0, 1, 2, 0, 2, 1])
    teacher = torch.tensor([0, 1, 2, 2, 0, 2, 1, 1])
    alone = torch.tensor([0, 2, 2, 0, 0, 2, 1, 1])
    ie = torch.tensor([0, 1, 0, 1, 0, 0, 1, 1])
    # Class 0: images 2 and 5 are rescued. 1: in 3 the wrong answers differ, 7 is easy. 2: none.
    assert pick(labels, teacher, alone, ie) == [(0, 2, True), (1, 7, False), (2, None, False)]
