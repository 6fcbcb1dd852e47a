"""What the halves learned: similarity to the teacher and flatness of the minimum, measured on the weights of finished runs.

`analyse(config)` measures once and leaves `seed<k>.analysis.json` beside the record; `records.load` then has the columns that
`METRICS` lists. The sources say that the paper shows CKA between features and the loss under Gaussian weight noise, not how they were
computed: every definition here is our choice. The relevance maps and the number of active neurons that they also name are in
`iekd.analysis.relevance` and `iekd.analysis.neurons`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pandas as pd
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from iekd import records
from iekd.config import RunConfig, methods
from iekd.config.run import fields_of
from iekd.data import Split, augment
from iekd.method import measures
from iekd.method.factor_transfer import FT, IEFT
from iekd.method.registry import MEASURES
from iekd.method.split import channel_split
from iekd.records import Analysis, store
from iekd.training import runner
from iekd.training.run import Run
from iekd.training.teacher import Teacher

METRICS = {
    "cka_halves": "debiased CKA between the two parts of the student's feature",
    "cka_teacher": "debiased CKA between the student's feature and the teacher's",
    "cka_inherit": "the same of the inheriting channels alone",
    "cka_explore": "the same of the exploring channels alone",
    "factor_inherit": "F_inh (FT: the whole student's factor) against F_T in the method's own measure",
    "factor_explore": "F_exp against F_T in the method's own measure",
    "rise_train": "rise of the cross-entropy on training images under weight noise of size SIGMA, mean over the draws",
    "rise_validation": "the same on validation images",
}
SIGMAS = (0.05, 0.1, 0.2, 0.4)  # size of the weight noise, relative to each filter
# The size that the columns rise_* and the claim about flatness are about: the loss of the student alone rises by about a third, and it
# still classifies. Chosen on that arm of the pilot, before any other was looked at.
SIGMA = 0.2
DRAWS = 5  # random directions; all sizes go along the same ones
NOISE_IMAGES = 1000  # the first of either split: the directions differ by more than the images
BATCH = 500


def analyse(config: RunConfig) -> Analysis:
    """The analysis of a finished run: from its file, or measured on its weights now. Nothing is trained.

    Raises `StoreError` if the run is not finished or weights are not at hand.
    """
    if reason := impossible(config):
        raise store.StoreError(f"{config.path} cannot be analysed: {reason}")
    record = records.find(config)
    if before := records.analysis_of(record):
        return before[0]
    run = runner.load_run(config)
    teacher = run.teacher or Teacher(runner.load_network(reference(config).teacher_run()), None)
    noise = weight_noise(run, config.seed)
    metrics = {**similarity(config, run, teacher), **_rises(noise)}
    teachers = {"teacher": records.find(reference(config).teacher_run()).weights}
    made_by = {
        name: value for name, value in records.provenance().items() if name in ("git", "versions")
    }
    analysis = Analysis(
        hash=config.hash,
        weights=record.weights,
        parents=teachers | record.parents,
        metrics=metrics,
        noise=noise.to_dict("list"),
        **made_by,
    )
    analysis.save(config)
    return records.read_analysis(records.analysis_path(config), record)  # rounded as in the file


def reference(config: RunConfig) -> RunConfig:
    """The run whose teacher and split of the channels `config` is measured with: itself if its method splits, else IE-FT with its seed.

    So every arm with one seed is divided in the same way and compared with the same teacher, whether its method knows of them or not.
    A method without a teacher is compared with the preset's.
    """
    return config if "split" in fields_of(config.method) else config.replace(method="ie-ft")


def impossible(config: RunConfig) -> str:
    """Why a run cannot be analysed; '' if it can, or has been."""
    record = records.find(config)
    if record is None:
        return "it is not finished; `iekd run` or `iekd sweep` finishes it"
    if records.analysis_of(record):
        return ""
    needed = [config, *config.parents().values(), reference(config).teacher_run()]
    missing = dict.fromkeys(run.path for run in needed if not records.weights_at_hand(run))
    return (
        f"no weights at hand of {', '.join(missing)}; runs/again/grid.yaml says how to train them again"
        if missing
        else ""
    )


# ---------------------------------------------------------------------- similarity


def cka(x: Tensor, y: Tensor) -> float | None:
    """Debiased linear CKA of features (N, C) and (N, D) over all N images at once; None if one has no channels or no variance.

    The same value as `measures.cka`, by the feature form of the unbiased HSIC (Song et al. 2012, eq. 4), whose cost grows with N
    and not with its square. Computed in float64.
    """
    if 0 in (x.shape[1], y.shape[1]):
        return None
    x, y = (z.double() - z.double().mean(0) for z in (x, y))  # HSIC does not change, rounding does
    scale = _hsic(x, x) * _hsic(y, y)
    return (_hsic(x, y) / scale**0.5).item() if scale > 0 else None


def _hsic(x: Tensor, y: Tensor) -> Tensor:
    """n(n-3) times the unbiased HSIC of the Gram matrices K = x x' and L = y y' without their diagonals."""
    n = len(x)
    k, l = x.square().sum(1), y.square().sum(1)  # the diagonals  # noqa: E741
    rows_k, rows_l = x @ x.sum(0) - k, y @ y.sum(0) - l
    trace = (x.T @ y).square().sum() - k @ l
    return (
        trace + rows_k.sum() * rows_l.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (rows_k @ rows_l)
    )


def _measure(name: str) -> Callable[[Tensor, Tensor], Tensor | float | None]:
    """A measure of the losses without sign and scale; CKA in the form that all test images fit into."""
    if name == "cka":
        return lambda x, y: cka(x.mean((2, 3)), y.mean((2, 3)))
    return MEASURES[name].function


def similarity(config: RunConfig, run: Run, teacher: Teacher) -> dict[str, float | None]:
    """CKA and distance of the factors on all test images; None where the method has no such part."""
    student, taught, factors, target = _outputs(run, teacher)
    halves = halves_of(config, student.shape[1])
    return {
        "cka_halves": cka(*(student[:, channels] for channels in halves.values())),
        "cka_teacher": cka(student, taught),
        **{f"cka_{name}": cka(student[:, channels], taught) for name, channels in halves.items()},
        **{f"factor_{name}": _distance(config, run, name, factors, target) for name in halves},
    }


def halves_of(config: RunConfig, channels: int) -> dict[str, Tensor]:
    """Which channels of the student's last feature inherit and which explore."""
    split = reference(config)
    stage = (
        len(methods.compared(config)) - 1 if split == config else 0
    )  # IE-AT and IE-OD divide every stage they compare anew
    return dict(
        zip(
            ("inherit", "explore"),
            channel_split(channels, split.split_ratio, split.split, split.seed, stage),
            strict=True,
        )
    )


@torch.no_grad()
def _outputs(run: Run, teacher: Teacher) -> tuple[Tensor, Tensor, dict[str, Tensor], Tensor | None]:
    """Of all test images: pooled features of student (N, C) and teacher (N, D), factors (N, K, H, W) by half, the teacher's factor."""
    parts = []
    for images, _ in _batches(run, run.dataset.test):
        student, taught = run.learner["student"](images), teacher(images)
        factors = {name: encode(student.feature) for name, encode in _encoders(run).items()}
        parts.append(
            {"student": student.features["pooled"], "teacher": taught.features["pooled"], **factors}
        )
        if "factor" in taught.features:
            parts[-1]["target"] = taught.features["factor"]
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return whole.pop("student"), whole.pop("teacher"), whole, whole.pop("target", None)


def _encoders(run: Run) -> dict:
    """The functions from the student's feature to its factors, by half; FT's one factor is all inheritance."""
    match run.learner["method"]:
        case FT() as method:
            return {"inherit": method.encoder}
        case IEFT() as method:
            return {name: half.factor for name, half in method.halves.items()}
    return {}


def _distance(
    config: RunConfig, run: Run, name: str, factors: dict[str, Tensor], target: Tensor | None
) -> float | None:
    """A half's factor against the teacher's in the measure that the method gives this half."""
    if name not in factors:
        return None
    method = run.learner["method"]
    if isinstance(method, FT):
        return measures.l1(factors[name], target).item()
    if (margin := method.halves[name].margin) is not None:
        target = measures.margin_relu(target, margin)
    value = _measure(getattr(config, name))(factors[name], target)
    return value.item() if isinstance(value, Tensor) else value


# ---------------------------------------------------------------------- flatness


@torch.no_grad()
def weight_noise(run: Run, seed: int) -> pd.DataFrame:
    """Cross-entropy and error (percent) of the student under Gaussian noise on its weights, in eval mode.

    One row per sigma and draw (sigma 0 first, once); columns sigma, draw, and <split>_loss, <split>_error for the train split (not
    augmented) and the validation split (left out if empty). The noise depends on the seed and the draw, not on the arm.
    """
    student = run.learner["student"]
    weights = dict(student.named_parameters())
    splits = {
        name: _first(getattr(run.dataset, name))
        for name in ("train", "validation")
        if len(getattr(run.dataset, name).labels)
    }
    rows = []
    for sigma, draw in [(0.0, 0), *((sigma, draw) for sigma in SIGMAS for draw in range(DRAWS))]:
        noise = filter_noise(student, seed * DRAWS + draw)
        moved = {name: weights[name] + sigma * direction for name, direction in noise.items()}
        row = {"sigma": sigma, "draw": draw}
        for name, split in splits.items():
            row |= {
                f"{name}_{metric}": value
                for metric, value in _score(run, student, moved, split).items()
            }
        rows.append(row)
    return pd.DataFrame(rows)


@torch.no_grad()
def filter_noise(network: nn.Module, seed: int) -> dict[str, Tensor]:
    """Gaussian noise for every weight of a convolution or linear layer, in units of the root mean square of its own filter (output row).

    Batch normalisation makes the network blind to the scale of a filter, so noise of one absolute size would make any minimum look as
    flat as its filters are long; noise relative to each filter does not depend on that scale (filter normalisation, Li et al. 2018).
    Biases and batch normalisation, its statistics included, stay as they were trained.
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
) -> dict[str, float]:
    loss = wrong = 0.0
    for images, labels in _batches(run, split):
        logits = functional_call(student, weights, (images,)).logits
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        wrong += (logits.argmax(1) != labels).sum().item()
    return {"loss": loss / len(split.labels), "error": 100 * wrong / len(split.labels)}


def _rises(noise: pd.DataFrame) -> dict[str, float]:
    """Mean loss at `SIGMA` minus the loss without noise, by split."""
    quiet, noisy = noise[noise["sigma"] == 0].mean(), noise[noise["sigma"] == SIGMA].mean()
    return {
        f"rise_{split}": noisy[column] - quiet[column]
        for split in ("train", "validation")
        if (column := f"{split}_loss") in noise
    }


def _first(split: Split) -> Split:
    return Split(split.images[:NOISE_IMAGES], split.labels[:NOISE_IMAGES])


def _batches(run: Run, split: Split) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised images and labels."""
    for pixels, labels in zip(split.images.split(BATCH), split.labels.split(BATCH), strict=True):
        yield augment.normalise(pixels, run.mean, run.std), labels


# ---------------------------------------------------------------------- frames


def noise_of(runs: pd.DataFrame) -> pd.DataFrame:
    """Loss and error under weight noise of the analysed runs of a frame, mean over the draws: one row per run and sigma, with the run's
    path, variant and seed; empty if none was analysed."""
    parts = []
    for row in runs.itertuples():
        if found := records.analysis_of(records.read(store.records_folder() / f"{row.path}.json")):
            curve = (
                pd.DataFrame(found[0].noise)
                .drop(columns="draw")
                .groupby("sigma", as_index=False)
                .mean()
            )
            parts.append(curve.assign(path=row.path, variant=row.variant, seed=row.seed))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def distances(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean L1 distance of each factor to F_T during training, from the loss curves of the records: the loss without sign and weight.

    One row per run, half ('inherit', 'explore'; FT's whole factor counts as 'inherit') and epoch, with the run's path, variant and seed.
    Only halves whose measure is L1 and whose target is F_T. A value is the mean over the epoch's augmented batches.
    """
    parts = []
    for row in runs.to_dict("records"):
        for half, column, weight in _l1_terms(row):
            curve = records.history(pd.DataFrame([row]))[
                ["epoch", "path", "variant", "seed", column]
            ]
            parts.append(
                curve.rename(columns={column: "distance"}).assign(
                    half=half, distance=lambda c, w=weight: c["distance"] / w
                )
            )
    return (
        pd.concat(parts, ignore_index=True)
        if parts
        else pd.DataFrame(columns=["epoch", "path", "variant", "seed", "distance", "half"])
    )


def _l1_terms(row: dict) -> list[tuple[str, str, float]]:
    """(half, its loss curve, its signed weight) of the L1 terms of a run."""
    if row["method"] == "ft":
        terms = [("inherit", "loss_ft", row["ft_weight"])]
    elif row["method"] == "ie-ft":
        inherit = (
            [("inherit", "loss_inherit", row["inherit_weight"])]
            if row["inherit"] == "l1" and row["split_ratio"] > 0
            else []
        )
        to_teacher = (
            row["explore"] == "l1" and row["explore_target"] == "teacher" and row["split_ratio"] < 1
        )
        terms = inherit + (
            [("explore", "loss_explore", -row["explore_weight"])] if to_teacher else []
        )
    else:
        terms = []
    return [term for term in terms if term[2]]
