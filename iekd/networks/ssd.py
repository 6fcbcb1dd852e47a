"""SSD (Liu et al. 2016) on an ImageNet ResNet: one pass gives boxes and their classes.

Every cell of stages 2, 3 and 4 has four default boxes: two squares, one of 2 : 1, one of
1 : 2. Anchors, coding and selection are torchvision's, written for a whole batch of one size;
details that the literature leaves open (which stages, how many boxes) are ours.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from iekd.networks.common import Output
from iekd.networks.imagenet import ImageNetResNet

STAGES = ("stage2", "stage3", "stage4")  # those with heads
# Sides of the squares of each stage as fractions of the image; the second is the geometric mean
# with the next stage's.
SCALES = (0.07, 0.16, 0.34, 0.6)
BOXES = 4  # default boxes per cell
SHIFT, GROWTH = 10.0, 5.0  # offsets of centre and size are learned in these units
LARGEST = math.log(1000 / 16)  # torchvision's bound on a logarithm
# What counts as a detection.
LEAST_SCORE, CANDIDATES, OVERLAP, KEPT = 0.01, 400, 0.45, 200


class SSD(ImageNetResNet):
    """`logits` is (B, default boxes, 1 + classes + 4): scores of background and classes, then the
    box as four offsets from the default box.

    There is no 'pooled', and 'stage3' is the last of the features: the distilled stage is the one
    on whose cells most heads depend, its own and stage 4's.
    """

    def __init__(
        self, depth: int, width: float, small: bool, num_classes: int, in_channels: int = 3
    ) -> None:
        super().__init__(depth, width, small, num_classes, in_channels)
        del self.head
        channels = [norm.num_features for norm in self.norms.values()]
        self.feature_channels, self.values = channels[2], 1 + num_classes + 4
        heads = [nn.Conv2d(c, BOXES * self.values, 3, padding=1) for c in channels[1:]]
        for head in heads:
            nn.init.xavier_uniform_(head.weight)
            nn.init.zeros_(head.bias)
        self.heads = nn.ModuleList(heads)

    def forward(self, images: Tensor) -> Output:
        """Images (B, in_channels, H, W), normalised; H and W from 16."""
        return self.tail(self.look(images, 3))

    def tail(self, features: dict[str, Tensor]) -> Output:
        """The output that follows from the features up to stage 3."""
        features = {**features, **self.run_stage(4, features["stage3"])}
        said = [head(features[name]) for head, name in zip(self.heads, STAGES, strict=True)]
        cells = [
            each.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, self.values)) for each in said
        ]
        distilled = {name: features.pop(name) for name in ("stage3_pre", "stage3")}
        return Output(torch.cat(cells, 1), {**features, **distilled})


def default_boxes(output: Output) -> Tensor:
    """Centre, width and height (boxes, 4) of the default boxes of an output, as fractions of the
    image.
    """
    sizes = tuple(tuple(output.features[name].shape[2:]) for name in STAGES)
    return _default_boxes(sizes, output.logits.device)


@lru_cache(maxsize=16)
def _default_boxes(sizes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    found = []
    for k, (height, width) in enumerate(sizes):
        scale, between = SCALES[k], (SCALES[k] * SCALES[k + 1]) ** 0.5
        long, short = scale * 2**0.5, scale / 2**0.5
        shapes = torch.tensor([(scale, scale), (between, between), (long, short), (short, long)])
        y, x = (torch.arange(n) + 0.5 for n in (height, width))
        centres = torch.cartesian_prod(y / height, x / width).flip(1)
        found.append(
            torch.cat([centres.repeat_interleave(BOXES, 0), shapes.repeat(len(centres), 1)], 1)
        )
    return torch.cat(found).to(device)


def corners(boxes: Tensor) -> Tensor:
    """(..., 4) centre, width, height -> left, top, right, bottom."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


def encode(boxes: Tensor, defaults: Tensor) -> Tensor:
    """Boxes (..., 4), corners, as offsets from their default boxes (..., 4)."""
    centre, size = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    shift = (centre - defaults[..., :2]) / defaults[..., 2:]
    growth = (size / defaults[..., 2:]).log()
    return torch.cat([SHIFT * shift, GROWTH * growth], -1)


def decode(offsets: Tensor, defaults: Tensor) -> Tensor:
    """The inverse of `encode`."""
    shift, growth = offsets[..., :2] / SHIFT, offsets[..., 2:] / GROWTH
    centre = shift * defaults[..., 2:] + defaults[..., :2]
    size = growth.clamp(max=LARGEST).exp() * defaults[..., 2:]
    return corners(torch.cat([centre, size], -1))


@torch.no_grad()
def detections(output: Output) -> list[dict[str, Tensor]]:
    """The detections in every image: `boxes` (n, 4), corners as fractions of the image, `scores`
    (n,) and `labels` (n,) from 1, the most confident first.

    Of boxes of one class that overlap by more than 0.45, only the most confident is kept.
    """
    from torchvision.ops import batched_nms

    scores = output.logits[..., :-4].softmax(-1)[..., 1:]
    boxes = decode(output.logits[..., -4:], default_boxes(output)).clamp(0, 1)
    found = []
    for score, box in zip(scores, boxes, strict=True):
        best, index = score.topk(min(CANDIDATES, len(score)), dim=0)
        likely = best > LEAST_SCORE
        label = torch.arange(1, score.shape[1] + 1, device=score.device).expand_as(best)[likely]
        best, box = best[likely], box[index[likely]]
        kept = batched_nms(box, best, label, OVERLAP)[:KEPT]
        found.append({"boxes": box[kept], "scores": best[kept], "labels": label[kept]})
    return found
