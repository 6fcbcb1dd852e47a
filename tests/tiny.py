"""The smallest runs that are still runs, records without training, and processes that can be
killed.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from iekd.config import RunConfig
from iekd.records import Metric, Record

SMALL = dict(
    teacher="resnet8x0.5",
    student="resnet8x0.25",
    train_images=200,
    validation_images=100,
    epochs=3,
    teacher_epochs=2,
    ae_epochs=2,
)
TIMES = (
    "started",
    "seconds",
    "images_per_second",
)  # all that two runs of one configuration may differ in


def tiny(method: str = "supervised", **fields: Any) -> RunConfig:
    """A run of 200 digits and three epochs: tenths of a second."""
    return RunConfig.create("smoke", **{**SMALL, "method": method, **fields})


def content(record: Record) -> dict[str, Any]:
    """What must be equal in two runs of one configuration."""
    return {name: value for name, value in record.to_json().items() if name not in TIMES}


def made_up(config: RunConfig, error: float = 10.0) -> Record:
    """A valid record of a run that never was."""
    epochs = list(range(1, config.epochs + 1))
    metric = Metric(epoch=config.epochs, test_error=error, validation_error=error + 1)
    return Record(
        config=config,
        hash=config.hash,
        parents={},
        weights="0" * 64,
        git={"commit": None, "dirty": None},
        versions={"iekd": "0", "torch": "2.0+cpu"},
        device={"name": "abacus", "type": "cpu", "threads": 1},
        started="2021-06-19T00:00:00+00:00",
        seconds=1.0,
        images_per_second=1.0,
        data={"name": config.dataset, "checksum": "0"},
        history={"lr": [0.1 / e for e in epochs], "loss": [1 / e for e in epochs]},
        metrics={"last": metric, "val_selected": metric, "best_on_test": metric},
    )


def start(task: Callable, runs: Path, *arguments: Any) -> multiprocessing.Process:
    """`task(*arguments)` in a process of its own, forked from one that has imported torch but
    computed nothing.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torchvision", "pandas"])
    process = context.Process(target=_child, args=(task, str(runs), arguments), daemon=True)
    process.start()
    return process


def _child(task: Callable, runs: str, arguments: tuple) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ["IEKD_RUNS"] = runs
    sys.exit(task(*arguments))
