"""Evaluation of a detector: average precision, by torchmetrics and faster-coco-eval."""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iekd.data import augment
from iekd.errors import TrainingError
from iekd.networks.ssd import detections
from iekd.training.run import Run

BATCH = 64
NEEDED = ("torchmetrics", "faster_coco_eval")
ELEVEN = slice(None, None, 10)  # the recall points of VOC 2007, out of 101


def check_installed() -> None:
    """Raise `TrainingError` if a package that evaluates detectors is missing."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise TrainingError(
            f"boxes are measured by packages that are not installed ({', '.join(missing)}): "
            "pip install 'iekd[detection]'"
        )


@torch.no_grad()
def measure(run: Run, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Results on uint8 images (N, C, H, W) and their boxes (N, M, 5), in percent: 'error', which is
    100 - COCO's AP; 'ap50'; 'ap50_11', the mean over 11 points of recall; 'ap_<class>'.

    AP50 over 11 points follows COCO's matching, not VOC's, and leaves difficult boxes out, so it is
    close to the mAP of VOC 2007 but not the same.
    """
    said, found = list[dict[str, Tensor]](), list[dict[str, Tensor]]()
    for pixels, answers in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        output = run.learner["student"](augment.normalise(pixels, run.mean, run.std))
        said += detections(output)
        found += listed(answers)
    return precision(said, found, run.dataset.boxes)


def listed(labels: Tensor) -> Iterator[dict[str, Tensor]]:
    """Class and corners of the boxes of each image of (N, M, 5)."""
    for each in labels:
        real = each[each[:, 0] > 0]
        yield {"labels": real[:, 0].long(), "boxes": real[:, 1:]}


def precision(
    said: list[dict[str, Tensor]], found: list[dict[str, Tensor]], classes: tuple[str, ...]
) -> dict[str, float]:
    """`measure` from the detections in each image and its true boxes."""
    from torchmetrics.detection import MeanAveragePrecision

    # COCO's numbers: torchmetrics rounds them to float32, which moves a precision at 0.2 of recall
    overlaps, recalls = np.linspace(0.5, 0.95, 10).tolist(), np.linspace(0, 1, 101).tolist()
    how: dict[str, Any] = {"iou_thresholds": overlaps, "rec_thresholds": recalls}
    metric = MeanAveragePrecision(backend="faster_coco_eval", extended_summary=True, **how)
    metric.warn_on_many_detections = False
    metric.update(said, found)
    summary = metric.compute()

    # (thresholds, points of recall, classes): all sizes, the 100 most confident per image
    values = 100 * summary["precision"][..., 0, -1].double()
    kinds = dict(zip(summary["classes"].reshape(-1).tolist(), values.unbind(2), strict=True))
    known = {classes[label - 1]: each for label, each in kinds.items() if (each >= 0).all()}
    if not known:
        return {"error": 100.0, "ap50": 0.0, "ap50_11": 0.0}
    every = torch.stack([*known.values()])
    means = {"error": 100 - every.mean(), "ap50": every[:, 0].mean()}
    means |= {"ap50_11": every[:, 0, ELEVEN].mean()}
    means |= {f"ap_{name}": each.mean() for name, each in known.items()}
    return {name: value.item() for name, value in means.items()}
