"""How many neurons are active: the number of directions of a feature that the loss responds to.

The sources name a "number of active neurons" of the paper and give no definition. This one is our inference (tag X in the
project's list of facts): Cui et al. (SIAM J. Math. Data Sci. 2020) call the dimension of the *active subspace* of a loss by that name.
With g the gradient of an image's cross-entropy by a feature and M = E[g g'], it is the smallest number of eigenvalues of M, largest
first, that hold 95 % of their sum. A half of the channels has a block of M.

* A neuron is a **channel**, and every position of every image a sample. With C*H*W neurons (`positions=False`) the number grows with
  the number of images: gradients of a fitted network are nearly zero for most images, and unlike each other in the rest.
* The feature is one **before** a ReLU. Behind the last ReLU follow a mean and a linear layer: all gradients lie in the span of its
  rows, at most classes - 1 directions, whatever the network.
* A count depends on which 95 % and on the scale of the channels; it does not change under rotations of the feature.

The number says something of a half only beside the **control**: a random half of a student that never was divided
(`methods.ie.channel_split`; `analysis.halves_of` gives it to every arm).

Beside it, of the pooled feature: directions that hold 99 % of its variance (`directions` of `covariance`), the participation ratio,
and the number of channels that cannot be replaced by their mean (Morcos et al. 2018).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iekd.relevance import BATCH, Parts

SHARE = 0.95  # of the trace, held by the active directions
VARIANCE = 0.99  # of the variance, for the principal components
COST = 0.1  # points of error that a channel must be worth


def measure(network: nn.Module, images: Tensor, labels: Tensor, parts: Parts) -> dict[str, int | float]:
    """Every number here for the last feature of a network, by part: 'active_<part>', 'pca99_', 'participation_', 'ablation_'.

    `network` in eval mode; normalised images (N, C, H, W), the same ones for all networks that are compared.
    """
    response = moment(loss_gradients(network, images, labels))
    with torch.no_grad():
        pooled = torch.cat([network(batch).features["pooled"] for batch in images.split(BATCH)])
    variance, costs = covariance(pooled), ablation(network.head, pooled, labels)
    found = {}
    for name, part in parts.items():
        found |= {
            f"active_{name}": directions(response[part][:, part], SHARE),
            f"pca99_{name}": directions(variance[part][:, part], VARIANCE),
            f"participation_{name}": participation(variance[part][:, part]),
            f"ablation_{name}": (costs[part] > COST).sum().item(),
        }
    return found


def loss_gradients(network: nn.Module, images: Tensor, labels: Tensor, feature: str | None = None) -> Tensor:
    """Gradient (N, C, H, W) of each image's cross-entropy by a feature of it; by the last one before its ReLU if none is named."""
    gradients = []
    for batch, target in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        output = network(batch.detach().requires_grad_())  # frozen weights alone would leave no graph
        name = feature or [name for name in output.features if name.endswith("_pre")][-1]
        loss = F.cross_entropy(output.logits, target, reduction="sum")
        gradients += torch.autograd.grad(loss, output.features[name])
    return torch.cat(gradients)


def moment(gradients: Tensor, positions: bool = True) -> Tensor:
    """E[g g'] in float64, of gradients (N, C, ...): (C, C) with every position a sample, else (C*H*W, C*H*W)."""
    samples = gradients.flatten(2).transpose(1, 2).flatten(0, 1) if positions else gradients.flatten(1)
    samples = samples.double()
    return samples.T @ samples / len(samples)


def covariance(pooled: Tensor) -> Tensor:
    """Of features (N, C), over the images, in float64: (C, C)."""
    return moment((pooled - pooled.mean(0))[..., None].double())


def directions(matrix: Tensor, share: float) -> int:
    """The smallest number of eigenvalues of a symmetric, positive matrix that hold a `share` of its trace; 0 of a zero matrix."""
    held = _eigenvalues(matrix).cumsum(0)
    if not len(held) or held[-1] == 0:
        return 0
    return int((held < share * held[-1]).sum()) + 1


def participation(matrix: Tensor) -> float:
    """(sum of eigenvalues)^2 / sum of their squares: r for r equal ones, near 1 if one holds nearly all; 0 of a zero matrix."""
    values = _eigenvalues(matrix)
    squares = values.square().sum()
    return (values.sum().square() / squares).item() if squares else 0.0


def _eigenvalues(matrix: Tensor) -> Tensor:
    """Largest first, without the small negative ones that rounding makes."""
    return torch.linalg.eigvalsh(matrix).flip(0).clamp(min=0)


@torch.no_grad()
def ablation(head: nn.Linear, pooled: Tensor, labels: Tensor) -> Tensor:
    """What it costs, in points of error, to replace each channel of the classifier's input (N, C) by its mean: (C,).

    No network has to run: the logits lose W_ck (pooled_k - mean).
    """
    logits, deviation = head(pooled), pooled - pooled.mean(0)

    def error(logits: Tensor) -> Tensor:
        return 100 * (logits.argmax(1) != labels).double().mean()

    without = [error(logits - deviation[:, k, None] * head.weight[:, k]) for k in range(pooled.shape[1])]
    return torch.stack(without) - error(logits)
