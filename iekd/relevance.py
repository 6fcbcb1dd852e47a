"""Where a network looks: which pixels make the score of a class, for the whole network or for a half of its channels.

**Score.** The networks end in a mean over positions and a linear head, so channel k adds
(W_yk - mean over classes of W_ck) * pooled_k to the centred logit of class y. The score of a half is the sum over its
channels, and the scores of disjoint halves add up to the whole. Softmax does not see what the centring takes out.

**Relevance** (layer-wise relevance propagation, Bach et al. 2015) hands the score back to the pixels, layer by layer, in
parts that sum to it. The rule is z+ (Montavon et al. 2017): a unit's relevance goes to its inputs in proportion to
their *positive* contributions; biases get no share. The same rule stands at residual sums, z-box at the pixels.
By autograd: a layer that computes y, and hands on in proportion to contributions with the sum z, is replaced by
r = z * stop(y / z): equal to y, while "input x gradient" of the whole is the relevance. All of it is linear in the score, so
maps of halves add up, too. A unit that fires although nothing reaches it keeps its relevance: nothing else does.

**Class activation map** (Zhou et al. 2016): the same score before the mean over positions. It needs no rule.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping
from typing import NamedTuple

import torch
from scipy import stats
from torch import Tensor, fx, nn
from torch.nn import functional as F

from iekd.fold import fold
from iekd.networks.common import he_init

Parts = Mapping[str, Tensor | slice]  # channels of the last feature by name, as `analysis.halves_of` gives them
WHOLE: Parts = {"all": slice(None)}
BATCH = 250

# ---------------------------------------------------------------------- scores and class activation maps


def contributions(network: nn.Module, feature: Tensor, labels: Tensor) -> Tensor:
    """What every channel of a feature (B, C, ...) adds to the centred logit of `labels` (B,); the shape stays."""
    weight = network.head.weight - network.head.weight.mean(0)
    return feature * weight[labels].view(*feature.shape[:2], *[1] * (feature.dim() - 2))


@torch.no_grad()
def scores(network: nn.Module, images: Tensor, labels: Tensor, parts: Parts = WHOLE) -> dict[str, Tensor]:
    """Score (N,) of the class `labels` by part, of normalised images (N, C, H, W)."""
    pooled = torch.cat([network(batch).features["pooled"] for batch in images.split(BATCH)])
    return {name: contributions(network, pooled, labels)[:, part].sum(1) for name, part in parts.items()}


@torch.no_grad()
def cam(network: nn.Module, images: Tensor, labels: Tensor, parts: Parts = WHOLE) -> dict[str, Tensor]:
    """Class activation map (N, h, w) by part, in the cells of the last feature; its sum over the cells is the score."""
    feature = torch.cat([network(batch).feature for batch in images.split(BATCH)])
    cells = contributions(network, feature, labels) / feature[0, 0].numel()
    return {name: cells[:, part].sum(1) for name, part in parts.items()}


# ---------------------------------------------------------------------- relevance


def corners(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """The darkest and the brightest normalised pixel, each (1, C, 1, 1): the box of the rule at the pixels."""
    return (0 - mean) / std, (1 - mean) / std


def relevance(network: nn.Module, images: Tensor, labels: Tensor, box: tuple[Tensor, Tensor], parts: Parts = WHOLE) -> dict[str, Tensor]:
    """Relevance (N, H, W) of every pixel for the score of `labels`, by part; its sum over the pixels is the score.

    `network` is traceable by torch.fx, in eval mode; `images` (N, C, H, W) are normalised and lie in the `box` of `corners`.
    """
    explained = with_rules(network)
    maps = {name: [] for name in parts}
    for batch, target in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        inputs = torch.cat([batch, *(corner.expand_as(batch) for corner in box)], dim=1).requires_grad_()
        channels = contributions(network, explained(inputs).features["pooled"], target)
        for name, part in parts.items():
            (gradient,) = torch.autograd.grad(channels[:, part].sum(), inputs, retain_graph=True)
            maps[name].append((inputs * gradient).detach().sum(1))
    return {name: torch.cat(batches) for name, batches in maps.items()}


def with_rules(network: nn.Module) -> fx.GraphModule:
    """A folded copy that computes the same, and whose input x gradient is relevance.

    Its input (B, 3C, H, W) is the image and the two corners of its box; the gradient of all three counts.
    """
    traced = fx.symbolic_trace(fold(network))
    for node in traced.graph.nodes:
        module = traced.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(module, nn.Conv2d):
            rule = ZBox if node.args[0].op == "placeholder" else ZPlus
            traced.set_submodule(node.target, rule(module))
        elif isinstance(module, nn.BatchNorm2d):
            traced.set_submodule(node.target, Pass(module))
        elif node.target is operator.add and all(isinstance(argument, fx.Node) for argument in node.args):
            node.target = add
    traced.recompile()
    return traced.eval()


def shared_by(y: Tensor, z: Tensor) -> Tensor:
    """`y`, with the gradient of z * stop(y / z): for inputs whose contributions have the sum `z`; 0 where that is 0."""
    nothing = z == 0
    r = z * torch.where(nothing, 0, y / torch.where(nothing, 1, z)).detach()
    return r + (y - r).detach()  # y to the bit of rounding, also where z is 0


def add(u: Tensor, v: Tensor) -> Tensor:
    """u + v, shared by the summands that have the sign of the sum."""
    y = u + v
    z = torch.where(y > 0, u.clamp(min=0) + v.clamp(min=0), u.clamp(max=0) + v.clamp(max=0))
    return shared_by(y, z)


class Pass(nn.Module):
    """A normalisation that could not be folded: one input for each output, which gets all."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return shared_by(self.norm(x), x)


class ZPlus(nn.Module):
    """A convolution, shared by positive contributions; by all of them where there is no positive one."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, x: Tensor) -> Tensor:
        y, weight, bias = self.convolution(x), self.convolution.weight, self.convolution.bias
        positive = self._apply(x.clamp(min=0), weight.clamp(min=0))
        if x.min() < 0:  # behind a ReLU it never is
            positive = positive + self._apply(x.clamp(max=0), weight.clamp(max=0))
        every = y if bias is None else y - bias[:, None, None]
        return shared_by(y, torch.where(positive > 0, positive, every))

    def _apply(self, x: Tensor, weight: Tensor) -> Tensor:
        c = self.convolution
        return F.conv2d(x, weight, None, c.stride, c.padding, c.dilation, c.groups)


class ZBox(ZPlus):
    """The first convolution: contributions w (x - low) for w > 0 and w (x - high) for w < 0, none of them negative."""

    def forward(self, inputs: Tensor) -> Tensor:
        (x, low, high), weight = inputs.chunk(3, dim=1), self.convolution.weight
        z = self._apply(x, weight) - self._apply(low, weight.clamp(min=0)) - self._apply(high, weight.clamp(max=0))
        return shared_by(self.convolution(x), z)


# ---------------------------------------------------------------------- agreement of maps


def agreement(one: Tensor, other: Tensor) -> float:
    """Pearson correlation over the pixels of maps (N, H, W), mean over the images; a constant map has none: 0."""
    a, b = (maps.flatten(1).double() for maps in (one, other))
    a, b = (maps - maps.mean(1, keepdim=True) for maps in (a, b))
    return F.cosine_similarity(a, b, eps=1e-30).mean().item()


def compare(
    student: nn.Module, teacher: nn.Module, images: Tensor, labels: Tensor, box: tuple[Tensor, Tensor], halves: Parts
) -> dict[str, float]:
    """Agreement of a student's maps with the teacher's, and of its two `halves` with each other: one number each for a run.

    Keys <relevance|cam>_<teacher|half|halves>: 'teacher' is the map of the whole student against the teacher's, a half's name its
    own map against it. The labels are the true ones for both. The CAMs need last features of the same height and width.
    """
    found = {}
    for kind, look in (("relevance", lambda n, parts: relevance(n, images, labels, box, parts)),
                       ("cam", lambda n, parts: cam(n, images, labels, parts))):  # fmt: skip
        wanted, maps = look(teacher, WHOLE)["all"], look(student, halves)
        one, other = maps.values()
        found[f"{kind}_teacher"] = agreement(one + other, wanted)
        found |= {f"{kind}_{name}": agreement(own, wanted) for name, own in maps.items()}
        found[f"{kind}_halves"] = agreement(one, other)
    return found


def floors(
    teacher: nn.Module, other: nn.Module, images: Tensor, labels: Tensor, box: tuple[Tensor, Tensor], seed: int = 0
) -> dict[str, float]:
    """What the agreement of a student's map with the teacher's must be read against: that of the teacher's map with

    the map of another image, the map of another class, the map of the teacher with its last stage drawn anew (floors), and
    the map of another teacher (a ceiling).
    """

    def look(network: nn.Module, target: Tensor) -> Tensor:
        return relevance(network, images, target, box)["all"]

    own, next_class = look(teacher, labels), (labels + 1) % teacher.head.out_features
    return {
        "another image": agreement(own, own.roll(1, 0)),
        "another class": agreement(own, look(teacher, next_class)),
        "random last stage": agreement(own, look(random_last_stage(teacher, seed), labels)),
        "another teacher": agreement(own, look(other, labels)),
    }


def random_last_stage(network: nn.Module, seed: int = 0) -> nn.Module:
    """A copy whose last stage (`network.stages[-1]`) has the weights of an untrained network."""
    drawn = copy.deepcopy(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in drawn.stages[-1].modules():
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
                module.reset_parameters()
        he_init(drawn.stages[-1])
    return drawn


# ---------------------------------------------------------------------- deletion


def delete(images: Tensor, order: Tensor, share: float, tile: int = 1) -> Tensor:
    """Normalised images (N, C, H, W) in which the tiles with the highest `order` (N, H, W), a `share` of all, are grey.

    Grey is the mean of the data set, 0. A tile has `tile` x `tile` pixels, and ranks by its mean.
    Raises `ValueError` if the side of the images is no multiple of it.
    """
    if images.shape[2] % tile or images.shape[3] % tile:
        raise ValueError(f"tile: {tile} does not divide images of {images.shape[2]} x {images.shape[3]} pixels")
    ranks = F.avg_pool2d(order[:, None], tile)
    first = ranks.flatten(1).argsort(dim=1, descending=True, stable=True)[:, : round(share * ranks[0].numel())]
    kept = torch.ones_like(ranks).flatten(1).scatter(1, first, 0).view_as(ranks)
    return images * kept.repeat_interleave(tile, 2).repeat_interleave(tile, 3).to(images.dtype)


def centre(images: Tensor) -> Tensor:
    """The order (N, H, W) that knows nothing of the image: the nearer to its centre, the higher. A floor for `delete`."""
    rows, columns = (torch.arange(side) - (side - 1) / 2 for side in images.shape[2:])
    return -(rows[:, None] ** 2 + columns**2).expand(len(images), -1, -1)


def left(network: nn.Module, images: Tensor, changed: Tensor, labels: Tensor, parts: Parts = WHOLE) -> dict[str, float]:
    """Share of the score that is left in `changed` images, by part: sum over the images after / before."""
    before, after = (scores(network, seen, labels, parts) for seen in (images, changed))
    return {name: (after[name].sum() / before[name].sum()).item() for name in parts}


# ---------------------------------------------------------------------- answers


class Rescue(NamedTuple):
    """McNemar's table of the teacher's mistakes: who repeats them, the student alone or IE?"""

    alike: int  # images that the teacher and the student alone get wrong, with the same answer
    rescued: int  # of these, those that IE gets right
    alike_ie: int  # images that the teacher and IE get wrong, with the same answer
    lost: int  # of these, those that the student alone gets right
    p: float  # of rescued against lost: exact, two-sided


def rescue(labels: Tensor, teacher: Tensor, alone: Tensor, ie: Tensor) -> Rescue:
    """The table from the answers (N,) of three networks; p is 1 if nobody is rescued or lost."""
    repeated, repeated_ie = (teacher != labels) & (alone == teacher), (teacher != labels) & (ie == teacher)
    rescued, lost = ((repeated & (ie == labels)).sum().item(), (repeated_ie & (alone == labels)).sum().item())
    p = stats.binomtest(rescued, rescued + lost).pvalue if rescued + lost else 1.0
    return Rescue(repeated.sum().item(), rescued, repeated_ie.sum().item(), lost, float(p))


class Picked(NamedTuple):
    """The image that stands for a class in a figure."""

    label: int
    image: int | None  # its index; None: no image of this class fits the rule
    rescued: bool  # False: no image of this class was, all three networks get this one right


def pick(labels: Tensor, teacher: Tensor, alone: Tensor, ie: Tensor) -> list[Picked]:
    """One image for each class, by a rule that was written down before any map was seen; no class is left out.

    The image with the lowest index that the teacher and the student alone get wrong with the same answer and IE gets right;
    if a class has none, the one with the lowest index that all three get right.
    """
    rescued = (teacher != labels) & (alone == teacher) & (ie == labels)
    easy = (teacher == labels) & (alone == labels) & (ie == labels)
    picked = []
    for label in labels.unique().tolist():
        found, fallback = ((labels == label) & fits for fits in (rescued, easy))
        indices = (found if found.any() else fallback).nonzero().flatten().tolist()
        picked.append(Picked(label, indices[0] if indices else None, bool(found.any())))
    return picked
