"""How many neurons are active: the number of directions of a feature that the loss responds to.

The sources mention a "number of active neurons" in the paper but give no definition. This one is
our inference (tag X): Cui et al. (SIAM J. Math. Data Sci. 2020) use that name for the dimension of
the *active subspace* of a loss. With g the gradient of an image's cross-entropy with respect to a
feature and M = E[g g'], it is the smallest number of eigenvalues of M, largest first, that hold
95 % of their sum. A half of the channels has its own block of M.

* A neuron is a **channel**, and every position of every image is a sample. Counted over C*H*W
  neurons (`positions=False`), the number grows with the number of images: the gradients of a fitted
  network are nearly zero for most images, and dissimilar for the rest.
* The feature is taken **before** its ReLU. After the last ReLU, only a mean and a linear layer
  follow, and all gradients lie in the span of its rows: at most classes - 1 directions, whatever
  the network.
* The number depends on the share and on the scale of the channels, but not on rotations of the
  feature.

**Control**: the number of a half is only meaningful next to that of a random half of a student that
was never divided. `similarity.halves_of` gives one for the student alone: the channels as IE-FT
with its seed would divide them.

In addition, for the pooled feature: the directions that hold 99 % of its variance (PCA), the
participation ratio, and the number of channels that cannot be replaced by their mean (Morcos et al.
2018).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iekd.analysis.relevance import BATCH, Parts

SHARE = 0.95  # of the trace, held by the active directions
VARIANCE = 0.99  # of the variance, held by the principal components
COST = 0.1  # points of error that a channel must be worth


def measure(
    network: nn.Module, images: Tensor, labels: Tensor, parts: Parts
) -> dict[str, int | float]:
    """Every number of this page, by part: active_, pca99_, participation_ and ablation_<part>.

    `network` in eval mode; normalised images (N, C, H, W), the same for all networks that are
    compared.
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
            f"ablation_{name}": int((costs[part] > COST).sum()),
        }
    return found


def loss_gradients(
    network: nn.Module, images: Tensor, labels: Tensor, feature: str | None = None
) -> Tensor:
    """Gradient (N, C, H, W) of each image's cross-entropy with respect to one of its features.

    Without a name, the last feature before its ReLU. `network` must be in eval mode: images must
    not depend on each other.
    """
    gradients = []
    for batch, target in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        output = network(batch.detach().requires_grad_())  # the weights may be frozen
        last = [name for name in output.features if name.endswith("_pre")][-1]
        loss = F.cross_entropy(output.logits, target, reduction="sum")
        gradients += torch.autograd.grad(loss, output.features[feature or last])
    return torch.cat(gradients)


def moment(gradients: Tensor, positions: bool = True) -> Tensor:
    """E[g g'] of gradients (N, C, ...), in float64: (C, C) with every position a sample.

    Without `positions`, (C*H*W, C*H*W) with every image a sample.
    """
    by_channel = gradients.flatten(2).transpose(1, 2).flatten(0, 1)
    samples = (by_channel if positions else gradients.flatten(1)).double()
    return samples.T @ samples / len(samples)


def covariance(pooled: Tensor) -> Tensor:
    """Covariance of features (N, C) over the images, in float64: (C, C)."""
    deviation = pooled.double() - pooled.double().mean(0)
    return deviation.T @ deviation / len(pooled)


def directions(matrix: Tensor, share: float) -> int:
    """The smallest number of eigenvalues that hold a `share` of the trace; 0 for a zero matrix."""
    held = _eigenvalues(matrix).cumsum(0)
    if not len(held) or held[-1] == 0:
        return 0
    return int((held < share * held[-1]).sum()) + 1


def participation(matrix: Tensor) -> float:
    """(sum of eigenvalues)^2 / sum of their squares: r for r equal ones; 0 for a zero matrix."""
    values = _eigenvalues(matrix)
    squares = values.square().sum()
    return (values.sum().square() / squares).item() if squares else 0.0


def _eigenvalues(matrix: Tensor) -> Tensor:
    """Largest first, without the small negative ones due to rounding."""
    return torch.linalg.eigvalsh(matrix).flip(0).clamp(min=0)


@torch.no_grad()
def ablation(head: nn.Linear, pooled: Tensor, labels: Tensor) -> Tensor:
    """Cost (C,), in points of error, of replacing a channel of `pooled` (N, C) by its mean.

    No forward pass is needed: the logits lose W_ck (pooled_k - mean).
    """
    logits, deviation = head(pooled), pooled - pooled.mean(0)
    changes = [deviation[:, k, None] * head.weight[:, k] for k in range(pooled.shape[1])]
    without = torch.stack([_error(logits - change, labels) for change in changes])
    return without - _error(logits, labels)


def _error(logits: Tensor, labels: Tensor) -> Tensor:
    return 100 * (logits.argmax(1) != labels).double().mean()
