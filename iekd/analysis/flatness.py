"""Flatness of the minimum: how much the loss rises under Gaussian noise on the weights."""

from collections.abc import Iterator

import pandas as pd
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from iekd import records
from iekd.data import Split, augment
from iekd.records import store
from iekd.training.run import Run

SIGMAS = (0.05, 0.1, 0.2, 0.4)  # size of the weight noise, relative to each filter
# The size used for the columns rise_* and the claim about flatness: the loss of the student alone
# rises by about a third, and it still classifies. Chosen on that arm of the pilot, before looking
# at any other.
SIGMA = 0.2
DRAWS = 5  # random directions, shared by all sizes
NOISE_IMAGES = 1000  # the first of either split: directions differ by more than images
BATCH = 500


@torch.no_grad()
def weight_noise(run: Run, seed: int) -> pd.DataFrame:
    """Cross-entropy and error (percent) of the student under noise on its weights, in eval mode.

    One row per sigma and draw (sigma 0 first, once); columns sigma, draw, and <split>_loss,
    <split>_error for the train split (not augmented) and the validation split (left out if empty).
    The noise depends on the seed and the draw, not on the arm.
    """
    student = run.learner["student"]
    weights = dict(student.named_parameters())
    splits = {name: getattr(run.dataset, name) for name in ("train", "validation")}
    rows = []
    for sigma, draw in [(0.0, 0), *((sigma, draw) for sigma in SIGMAS for draw in range(DRAWS))]:
        noise = filter_noise(student, seed * DRAWS + draw)
        moved = {name: weights[name] + sigma * direction for name, direction in noise.items()}
        row = {"sigma": sigma, "draw": draw}
        for name, split in splits.items():
            if len(split.labels):
                loss, error = _score(run, student, moved, split)
                row |= {f"{name}_loss": loss, f"{name}_error": error}
        rows.append(row)
    return pd.DataFrame(rows)


@torch.no_grad()
def filter_noise(network: nn.Module, seed: int) -> dict[str, Tensor]:
    """Gaussian noise for every weight of a convolution or linear layer, in units of the root mean
    square of its own filter (output row).

    Batch normalisation makes the network blind to the scale of a filter, so noise of a fixed
    absolute size would make a minimum look flatter the longer its filters are; noise relative to
    each filter does not depend on that scale (filter normalisation, Li et al. 2018). Biases and
    batch normalisation, including its statistics, stay as trained.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = {}
    for name, weight in network.named_parameters():
        if weight.dim() > 1:
            size = weight.square().mean(dim=tuple(range(1, weight.dim())), keepdim=True).sqrt()
            noise[name] = size * torch.randn(weight.shape, generator=generator)
    return noise


def _score(
    run: Run, student: nn.Module, weights: dict[str, Tensor], split: Split
) -> tuple[float, float]:
    """Cross-entropy and error (percent) on the first images of a split."""
    first = Split(split.images[:NOISE_IMAGES], split.labels[:NOISE_IMAGES])
    loss = wrong = 0.0
    for images, labels in batches(run, first):
        logits = functional_call(student, weights, (images,)).logits
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        wrong += (logits.argmax(1) != labels).sum().item()
    return loss / len(first.labels), 100 * wrong / len(first.labels)


def batches(run: Run, split: Split) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised images and labels."""
    for pixels, labels in zip(split.images.split(BATCH), split.labels.split(BATCH), strict=True):
        yield augment.normalise(pixels, run.mean, run.std), labels


def rises(noise: pd.DataFrame) -> dict[str, float]:
    """Mean loss at `SIGMA` minus the loss without noise: rise_<split>."""
    quiet, noisy = (noise[noise["sigma"] == sigma].mean() for sigma in (0.0, SIGMA))
    losses = [name for name in ("train_loss", "validation_loss") if name in noise]
    return {f"rise_{name.removesuffix('_loss')}": noisy[name] - quiet[name] for name in losses}


def noise_of(runs: pd.DataFrame) -> pd.DataFrame:
    """Loss and error under noise of the analysed runs of a frame, mean over the draws.

    One row per run and sigma, with the run's path, variant and seed; empty if none was analysed.
    """
    parts = []
    for row in runs.itertuples():
        file = store.record_file(row.path)
        folder = file.parents[row.path.count("/")]
        if found := records.analysis_of(records.read(file), folder):
            noise = pd.DataFrame(found[0].noise).drop(columns="draw")
            curve = noise.groupby("sigma", as_index=False).mean()
            parts.append(curve.assign(path=row.path, variant=row.variant, seed=row.seed))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
