"""Where a network looks: which pixels produce the score of a class, for all channels or for a half.

**Score.** The networks end in a mean over positions and a linear head, so channel k adds (W_yk -
mean over classes of W_ck) * pooled_k to the centred logit of class y (softmax ignores what centring
removes). The score of a half is the sum over its channels; the two halves add up to the whole.

**Relevance** (layer-wise relevance propagation, Bach et al. 2015) passes the score down to the
pixels, layer by layer, in parts that add up to it. The rule is z+ (Montavon et al. 2017): a unit's
relevance goes to its inputs in proportion to their *positive* contributions; biases get nothing.
Residual sums follow the same rule, the pixels the z-box rule. It is computed by autograd: a layer
that computes y, and whose contributions add up to z, is replaced by r = z * stop(y / z). That
equals y, and "input x gradient" of the whole network is the relevance. It is linear in the score,
so maps of halves add up, too.

* A residual sum could also be shared by both signs, which explodes if a normalisation follows it
  (WRN): its input may be near zero while its output is not. Maps depend on this choice.
* A unit that fires because of its bias alone keeps its relevance, so the sum may fall short of the
  score: by a little on the digits' black background, by a lot in MobileNetV2, whose filters see one
  channel.

**Class activation map** (Zhou et al. 2016): the same score before the mean over positions, without
a rule.
"""

import copy
import operator
from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from iekd.networks.common import he_init
from iekd.speed.fold import fold

Parts = Mapping[str, Tensor | slice]  # channels of the last feature, as from `similarity.halves_of`
Box = tuple[Tensor, Tensor]  # the smallest and largest normalised pixel, each (1, C, 1, 1)
WHOLE: Parts = {"all": slice(None)}
BATCH = 250


def contributions(network: nn.Module, feature: Tensor, labels: Tensor) -> Tensor:
    """What each channel of a feature (B, C, ...) adds to the centred logit of `labels` (B,)."""
    weight = network.head.weight - network.head.weight.mean(0)
    return feature * weight[labels].view(*feature.shape[:2], *[1] * (feature.dim() - 2))


@torch.no_grad()
def scores(
    network: nn.Module, images: Tensor, labels: Tensor, parts: Parts = WHOLE
) -> dict[str, Tensor]:
    """Score (N,) of the class `labels` by part, for normalised images (N, C, H, W)."""
    pooled = torch.cat([network(batch).features["pooled"] for batch in images.split(BATCH)])
    channels = contributions(network, pooled, labels)
    return {name: channels[:, part].sum(1) for name, part in parts.items()}


@torch.no_grad()
def cam(
    network: nn.Module, images: Tensor, labels: Tensor, parts: Parts = WHOLE
) -> dict[str, Tensor]:
    """Class activation map (N, h, w) by part, on the last feature's grid; it sums to the score."""
    feature = torch.cat([network(batch).feature for batch in images.split(BATCH)])
    cells = contributions(network, feature, labels) / feature[0, 0].numel()
    return {name: cells[:, part].sum(1) for name, part in parts.items()}


def corners(mean: Tensor, std: Tensor) -> Box:
    """The box of normalised pixels: 0 and 1, normalised by mean and std (1, C, 1, 1)."""
    return (0 - mean) / std, (1 - mean) / std


def relevance(
    network: nn.Module, images: Tensor, labels: Tensor, box: Box, parts: Parts = WHOLE
) -> dict[str, Tensor]:
    """Relevance (N, H, W) of every pixel for the score of `labels`, by part; its sum is the score.

    `network` is traceable by torch.fx; `images` (N, C, H, W) are normalised and lie in the `box`.
    """
    explained = with_rules(network)
    maps = {name: [] for name in parts}
    for batch, target in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        ends = [end.expand_as(batch) for end in box]
        inputs = torch.cat([batch, *ends], dim=1).requires_grad_()
        channels = contributions(network, explained(inputs).features["pooled"], target)
        for name, part in parts.items():
            score = channels[:, part].sum()
            (gradient,) = torch.autograd.grad(score, inputs, retain_graph=True)
            maps[name].append((inputs * gradient).detach().sum(1))
    return {name: torch.cat(batches) for name, batches in maps.items()}


def with_rules(network: nn.Module) -> fx.GraphModule:
    """A folded copy in eval mode that computes the same; its input x gradient is the relevance.

    Its input (B, 3C, H, W) is the image and the two corners of its box, each with its own part of
    the relevance.
    """
    traced = fx.symbolic_trace(fold(network))
    for node in traced.graph.nodes:
        module = traced.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(module, nn.Conv2d):
            rule = ZBox if node.args[0].op == "placeholder" else ZPlus
            traced.set_submodule(node.target, rule(module))
        elif isinstance(module, nn.BatchNorm2d):
            traced.set_submodule(node.target, Pass(module))
        elif node.target is operator.add and len(node.all_input_nodes) == 2:
            node.target = add
    traced.recompile()
    return traced.eval()


def shared_by(y: Tensor, z: Tensor) -> Tensor:
    """`y` with the gradient of z * stop(y / z), and no gradient where z is 0.

    `z` is the sum of the contributions that share the relevance of `y`.
    """
    nothing = z == 0
    r = z * torch.where(nothing, 0, y / torch.where(nothing, 1, z)).detach()
    return r + (y - r).detach()  # the value is y even where z is 0


def add(u: Tensor, v: Tensor) -> Tensor:
    """u + v, shared among the summands that have the sign of the sum."""
    y = u + v
    positive, negative = u.clamp(min=0) + v.clamp(min=0), u.clamp(max=0) + v.clamp(max=0)
    return shared_by(y, torch.where(y > 0, positive, negative))


class Pass(nn.Module):
    """A normalisation that could not be folded: each output has one input, which gets all."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return shared_by(self.norm(x), x)


class ZPlus(nn.Module):
    """A convolution, shared by positive contributions; if there are none, by the negative."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, x: Tensor) -> Tensor:
        y, weight, bias = self.convolution(x), self.convolution.weight, self.convolution.bias
        positive = self._apply(x.clamp(min=0), weight.clamp(min=0))
        if x.min() < 0:  # never after a ReLU
            positive = positive + self._apply(x.clamp(max=0), weight.clamp(max=0))
        every = y if bias is None else y - bias[:, None, None]
        return shared_by(y, torch.where(positive > 0, positive, every))

    def _apply(self, x: Tensor, weight: Tensor) -> Tensor:
        c = self.convolution
        return F.conv2d(x, weight, None, c.stride, c.padding, c.dilation, c.groups)


class ZBox(ZPlus):
    """The first convolution, shared by w (x - low) for w > 0 and w (x - high) for w < 0."""

    def forward(self, inputs: Tensor) -> Tensor:
        (x, low, high), weight = inputs.chunk(3, dim=1), self.convolution.weight
        ends = self._apply(low, weight.clamp(min=0)) + self._apply(high, weight.clamp(max=0))
        return shared_by(self.convolution(x), self._apply(x, weight) - ends)


def agreement(one: Tensor, other: Tensor) -> float:
    """Pearson correlation over the pixels of maps (N, H, W), mean over images; 0 if constant."""
    a, b = (maps.flatten(1).double() for maps in (one, other))
    a, b = (maps - maps.mean(1, keepdim=True) for maps in (a, b))
    return F.cosine_similarity(a, b, eps=1e-30).mean().item()


def maps_of(
    network: nn.Module, images: Tensor, labels: Tensor, box: Box, parts: Parts = WHOLE
) -> dict[str, dict[str, Tensor]]:
    """Both kinds of map, 'relevance' and 'cam', by part."""
    by_rule = relevance(network, images, labels, box, parts)
    return {"relevance": by_rule, "cam": cam(network, images, labels, parts)}


def compare(
    student: nn.Module,
    wanted: Mapping[str, Tensor],
    images: Tensor,
    labels: Tensor,
    box: Box,
    halves: Parts,
) -> dict[str, float]:
    """Agreement of a student's maps with the `wanted` ones (its teacher's, by kind), and of its two
    `halves` with each other.

    One number each per run; `labels` are the true ones, for both networks. Keys relevance_<x> and
    cam_<x>: x is 'teacher' for the whole student against the teacher, a half's name for its own map
    against the teacher's, and 'halves' for one half against the other. The last features of both
    networks need the same height and width.
    """
    found = {}
    for kind, maps in maps_of(student, images, labels, box, halves).items():
        one, other = maps.values()
        found[f"{kind}_teacher"] = agreement(one + other, wanted[kind])
        found |= {f"{kind}_{name}": agreement(own, wanted[kind]) for name, own in maps.items()}
        found[f"{kind}_halves"] = agreement(one, other)
    return found


def floors(
    teacher: nn.Module,
    other: nn.Module | None,
    images: Tensor,
    labels: Tensor,
    box: Box,
    own: Tensor,
) -> dict[str, float | None]:
    """What to compare an agreement with the teacher's relevance map with: agreements of that map,
    its `own`.

    Floors: with the map of another image, of another class, and of the teacher with its last stage
    reinitialised. A ceiling: with the map of an `other` teacher, None without one.
    """
    following = (labels + 1) % teacher.head.out_features
    drawn = random_last_stage(teacher)
    return {
        "floor_image": agreement(own, own.roll(1, 0)),
        "floor_class": agreement(own, relevance(teacher, images, following, box)["all"]),
        "floor_stage": agreement(own, relevance(drawn, images, labels, box)["all"]),
        "ceiling": agreement(own, relevance(other, images, labels, box)["all"]) if other else None,
    }


def random_last_stage(network: nn.Module, seed: int = 0) -> nn.Module:
    """A copy whose last stage, `network.stages[-1]`, is that of an untrained network."""
    drawn = copy.deepcopy(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in drawn.stages[-1].modules():
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
                module.reset_parameters()
        he_init(drawn.stages[-1])
    return drawn


def delete(images: Tensor, order: Tensor, share: float, tile: int = 1) -> Tensor:
    """Normalised images (N, C, H, W) with a `share` of their tiles grey: the first in `order`.

    The highest value of `order` (N, H, W) goes first. A tile has `tile` x `tile` pixels and is
    ranked by their mean; among equals, the upper left goes first. Grey is 0, the mean of the data
    set. Raises `ValueError` if tiles do not fill the image.
    """
    height, width = images.shape[2:]
    if height % tile or width % tile:
        raise ValueError(f"tile: {tile} does not divide images of {height} x {width} pixels")
    ranks = F.avg_pool2d(order[:, None], tile).flatten(1)
    first = ranks.argsort(dim=1, descending=True, stable=True)[:, : round(share * ranks.shape[1])]
    kept = torch.ones_like(ranks).scatter(1, first, 0).view(-1, 1, height // tile, width // tile)
    return images * kept.repeat_interleave(tile, 2).repeat_interleave(tile, 3)


def centre(images: Tensor) -> Tensor:
    """The order (N, H, W) that ignores the image: the nearer to its centre, the higher.

    A floor for maps, to be read at shares that end with a ring, such as 4 of 4 x 4 tiles: of tiles
    at the same distance, `delete` takes the upper ones first, and in photographs the lower ones
    matter more.
    """
    rows, columns = (torch.arange(side) - (side - 1) / 2 for side in images.shape[2:])
    return -(rows[:, None] ** 2 + columns**2).expand(len(images), -1, -1)


def left(
    network: nn.Module, images: Tensor, changed: Tensor, labels: Tensor, parts: Parts = WHOLE
) -> dict[str, float]:
    """Share of the score that is left in `changed` images, by part: sum after / sum before."""
    before, after = (scores(network, seen, labels, parts) for seen in (images, changed))
    return {name: (after[name].sum() / before[name].sum()).item() for name in parts}
