"""Similarity of what a student learned to its teacher, and of its two halves to each other."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from iekd import records
from iekd.analysis.flatness import batches
from iekd.config import RunConfig, known, methods
from iekd.config.reads import fields_of
from iekd.method import measures, registry
from iekd.method.split import channel_split
from iekd.training.run import Run
from iekd.training.teacher import Teacher

HALVES = ("inherit", "explore")
# The loss curves that are a weighted distance between factors: the half, and the sign.
TERMS = {"ft": ("inherit", 1), "inherit": ("inherit", 1), "explore": ("explore", -1)}


def reference(config: RunConfig) -> RunConfig:
    """The run whose teacher and split of the channels `config` is measured with.

    That is itself if its method splits, else IE-FT with its seed, so that all arms with the same
    seed are divided in the same way and compared with the same teacher, whether or not their method
    uses them. A method without a teacher is compared with the preset's.
    """
    return config if "split" in fields_of(config.method) else config.replace(method="ie-ft")


def halves_of(config: RunConfig, channels: int) -> dict[str, Tensor]:
    """Which channels of the student's last feature inherit and which explore."""
    split = reference(config)
    # IE-AT and IE-OD divide each stage they compare separately
    stage = len(methods.compared(config)) - 1 if split == config else 0
    halves = channel_split(channels, split.split_ratio, split.split, split.seed, stage)
    return dict(zip(HALVES, halves, strict=True))


def similarity(config: RunConfig, run: Run, teacher: Teacher) -> dict[str, float | None]:
    """CKA and distance of the factors, on all test images; None where there is no such part."""
    seen, losses = _outputs(run, teacher, _compares_factors(config.method))
    student, taught = seen["student"], seen["teacher"]
    halves = {name: student[:, c] for name, c in halves_of(config, student.shape[1]).items()}
    found = {"cka_halves": feature_cka(*halves.values())}
    found["cka_teacher"] = feature_cka(student, taught)
    for name, half in halves.items():
        found[f"cka_{name}"] = feature_cka(half, taught)
    for name in HALVES:
        factor = losses.get(name) and (seen[name], seen["target"], losses[name])
        found[f"factor_{name}"] = _distance(getattr(config, name), *factor) if factor else None
    return found


def feature_cka(x: Tensor, y: Tensor) -> float | None:
    """Debiased linear CKA of features (N, C) and (N, D) over all N images at once, in float64.

    None if one has no channels or no variance. The same value as the measure `measures.cka`, by the
    feature form of the unbiased HSIC (Song et al. 2012, eq. 4), whose cost grows with N rather than
    N^2.
    """
    if 0 in (x.shape[1], y.shape[1]):
        return None
    x, y = (z.double() - z.double().mean(0) for z in (x, y))  # HSIC does not change, rounding does
    scale = _hsic(x, x) * _hsic(y, y)
    return (_hsic(x, y) / scale**0.5).item() if scale > 0 else None


def _hsic(x: Tensor, y: Tensor) -> Tensor:
    """n(n-3) times the unbiased HSIC of the Gram matrices K = x x' and L = y y', no diagonals."""
    n = len(x)
    diagonal_k, diagonal_l = x.square().sum(1), y.square().sum(1)
    rows_k, rows_l = x @ x.sum(0) - diagonal_k, y @ y.sum(0) - diagonal_l
    trace = (x.T @ y).square().sum() - diagonal_k @ diagonal_l
    sums = rows_k.sum() * rows_l.sum() / ((n - 1) * (n - 2))
    return trace + sums - 2 / (n - 2) * (rows_k @ rows_l)


def _compares_factors(method: str) -> bool:
    """Whether the parts of a method's loss are factors (FT, IE-FT)."""
    row = known.methods().get(method)
    return row is not None and row.reads == "factor" and hasattr(row.kind, "parts")


@torch.no_grad()
def _outputs(
    run: Run, teacher: Teacher, factors: bool
) -> tuple[dict[str, Tensor], dict[str, Callable]]:
    """For all test images: pooled features of student (N, C) and teacher (N, D).

    If the method compares `factors`, also the student's, (N, K, H, W), by half, and the teacher's,
    the target; separately, the loss of each half.
    """
    seen, losses = defaultdict(list), {}
    for images, _ in batches(run, run.dataset.test):
        student, taught = run.learner["student"](images), teacher(images)
        seen["student"].append(student.features["pooled"])
        seen["teacher"].append(taught.features["pooled"])
        if factors:
            seen["target"].append(taught.features["factor"])
            for name, part in run.learner["method"].parts(student, taught).items():
                # a factor of the whole student counts as inheritance
                half = "inherit" if part.channels is None else name
                seen[half].append(part.student)
                losses[half] = part.loss
    return {name: torch.cat(parts) for name, parts in seen.items()}, losses


def _distance(measure: str, factor: Tensor, target: Tensor, loss: Callable) -> float | None:
    """A half's factor against the teacher's, in the measure of its `loss` without sign and scale.

    CKA in the form that handles all test images at once.
    """
    if (margin := getattr(loss, "margin", None)) is not None:
        target = measures.margin_relu(target, margin)
    if measure == "cka":
        return feature_cka(factor.mean((2, 3)), target.mean((2, 3)))
    return registry.MEASURES[measure].function(factor, target).item()


def distances(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean L1 distance of each factor to F_T during training: loss curves without sign and weight.

    One row per run, half ('inherit', 'explore'; FT's whole factor counts as 'inherit') and epoch,
    with the run's path, variant and seed. Only halves whose measure is L1 and whose target is F_T.
    Values are means over the epoch's augmented batches.
    """
    columns = ["epoch", "path", "variant", "seed"]
    parts = [pd.DataFrame(columns=[*columns, "distance", "half"])]
    for row in runs.to_dict("records"):
        for term, (half, sign) in TERMS.items():
            if _is_l1_to_teacher(row, term, half):
                curve = records.history(pd.DataFrame([row]))
                distance = curve[f"loss_{term}"] / (sign * row[f"{term}_weight"])
                parts.append(curve[columns].assign(distance=distance, half=half))
    return pd.concat(parts[1:] or parts, ignore_index=True)


def _is_l1_to_teacher(row: Mapping[str, Any], term: str, half: str) -> bool:
    """Whether a run has this loss, in L1 to the teacher's factor, with a weight and channels."""
    weight, share = f"{term}_weight", row["split_ratio"]
    has_term = _compares_factors(row["method"]) and weight in fields_of(row["method"])
    if not has_term or row[half] != "l1" or not row[weight]:
        return False
    return share > 0 if half == "inherit" else share < 1 and row["explore_target"] == "teacher"
