"""Who repeats the teacher's mistakes, and which images show it, from answers: no network is run."""

from typing import NamedTuple

import torch
from scipy import stats
from torch import Tensor


class Rescue(NamedTuple):
    """McNemar's table of the teacher's mistakes: who repeats them, the student alone or IE?"""

    alike: int  # images that the teacher and the student alone get wrong, with the same answer
    rescued: int  # of these, those that IE gets right
    alike_ie: int  # images that the teacher and IE get wrong, with the same answer
    lost: int  # of these, those that the student alone gets right
    p: float  # of rescued against lost: exact, two-sided


def said(answers: str) -> Tensor:
    """The answers stored in an analysis (`looks.answers`), (N,): 0 is right, k + 1 is class k.

    With zeros as labels, they are valid input to `rescue`.
    """
    words = answers.split() if " " in answers else list(answers)
    return torch.tensor([0 if word == "." else int(word) + 1 for word in words])


def rescue(labels: Tensor, teacher: Tensor, alone: Tensor, ie: Tensor) -> Rescue:
    """The table from true labels and the answers of three networks, each (N,); p is 1 if no image
    is rescued or lost.
    """
    wrong = teacher != labels
    repeated, repeated_ie = wrong & (alone == teacher), wrong & (ie == teacher)
    rescued = int((repeated & (ie == labels)).sum())
    lost = int((repeated_ie & (alone == labels)).sum())
    p = float(stats.binomtest(rescued, rescued + lost).pvalue) if rescued + lost else 1.0
    return Rescue(int(repeated.sum()), rescued, int(repeated_ie.sum()), lost, p)


class Picked(NamedTuple):
    """The image that represents a class in a figure."""

    label: int
    image: int | None  # its index; None if no image of this class fits the rule
    rescued: bool  # False: no image of the class was; all three networks get this one right


def pick(labels: Tensor, teacher: Tensor, alone: Tensor, ie: Tensor) -> list[Picked]:
    """One image for each class, by a rule written down before any map was seen; no class is left
    out.

    It is the image with the lowest index that the teacher and the student alone get wrong with the
    same answer and IE gets right; if a class has none, the one with the lowest index that all three
    get right.
    """
    rescued = (teacher != labels) & (alone == teacher) & (ie == labels)
    easy = (teacher == labels) & (alone == labels) & (ie == labels)
    picked = []
    for label in labels.unique().tolist():
        own = labels == label
        was_rescued = bool((own & rescued).any())
        fits = (own & (rescued if was_rescued else easy)).nonzero().flatten().tolist()
        picked.append(Picked(label, fits[0] if fits else None, was_rescued))
    return picked
