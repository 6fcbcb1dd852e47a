"""The loss of a detector (SSD, Liu et al. 2016, section 2.2), for a whole batch at once.

The same value as torchvision's `SSD.compute_loss`, which goes through the images one by one. Here
every default box is compared with every slot for a box, so all shapes are fixed and nothing waits
for the device.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from iekd.networks import Output
from iekd.networks.ssd import corners, default_boxes, encode

OVERLAP = 0.5  # minimum for a default box to be matched to a box
NEGATIVES = 3  # for each match, taken from the hardest of the others


def ssd_loss(student: Output, targets: Tensor) -> Tensor:
    """Smooth L1 of the offsets, plus cross-entropy; divided by the number of matched default boxes.

    `targets` (B, M, 5): class (from 1) and corners of each box as fractions of the image; class 0
    is padding. The cross-entropy counts the matched default boxes and three times as many of the
    image's others, those where it is largest.
    """
    defaults = default_boxes(student)
    answers = match(targets, corners(defaults))
    positive = answers >= 0
    index = answers.clamp(min=0)[..., None].expand(-1, -1, 5)
    label, boxes = targets.gather(1, index).split([1, 4], -1)

    # The matched boxes; elsewhere any box will do that keeps the logarithms finite.
    boxes = torch.where(positive[..., None], boxes, corners(defaults))
    offsets = encode(boxes, defaults)
    distance = F.smooth_l1_loss(student.logits[..., -4:], offsets, reduction="none").sum(-1)

    # The classes; unmatched default boxes are ranked by their loss within the image.
    label = torch.where(positive, label[..., 0], 0).long()
    scores = student.logits[..., :-4]
    entropy = F.cross_entropy(scores.flatten(0, 1), label.flatten(), reduction="none")
    entropy = entropy.view_as(label)
    hardest = entropy.detach().masked_fill(positive, -torch.inf).argsort(1, descending=True)
    counted = positive | (hardest.argsort(1) < NEGATIVES * positive.sum(1, keepdim=True))
    total = (distance * positive).sum() + (entropy * counted).sum()
    return total / positive.sum().clamp(min=1)


def match(targets: Tensor, defaults: Tensor) -> Tensor:
    """For every default box (A, 4), the index of the box in (B, M, 5) that it is matched to, or -1:
    int64 (B, A).

    That is the box it overlaps most, if by at least half; the default box that overlaps a box most
    is matched to that box in any case.
    """
    overlap = _overlaps(targets[..., None, 1:], defaults)
    most, answers = overlap.max(1)
    answers = torch.where(most < OVERLAP, -1, answers)

    # The best for each box; if two boxes share it, the later one wins.
    places = torch.arange(targets.shape[1], device=targets.device)
    places = torch.where(targets[..., 0] > 0, places, -1)
    best = torch.full_like(answers, -1).scatter_reduce(1, overlap.argmax(2), places, "amax")
    return torch.where(best >= 0, best, answers)


def _overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of boxes (..., 4), corners."""
    left, top, right, bottom = boxes.unbind(-1)
    # contiguous: a stride of four would cost a third of a training step
    its_left, its_top, its_right, its_bottom = others.mT.contiguous().unbind(-2)
    width = torch.minimum(right, its_right) - torch.maximum(left, its_left)
    height = torch.minimum(bottom, its_bottom) - torch.maximum(top, its_top)
    both = width.clamp(min=0) * height.clamp(min=0)
    areas = (right - left) * (bottom - top) + (its_right - its_left) * (its_bottom - its_top)
    return both / (areas - both)
