"""Curves of runs while they train, on request: `iekd run --log DIR`, or IEKD_LOG=DIR.

Our choice: one CSV file per run, which every tool reads, and TensorBoard events where that is
installed.
"""

import os
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from iekd.errors import StoreError
from iekd.records import store

_boards: dict[Path, Any] = {}  # open TensorBoard writers, by folder


def folder() -> Path | None:
    """Where the curves go, if requested. Raises `StoreError` if it cannot be written."""
    named = os.environ.get("IEKD_LOG")
    if not named:
        return None
    place = Path(named).expanduser()
    store.check_writable(place / "curves.csv")
    return place


def write(place: Path, path: str, history: list[dict]) -> None:
    """Bring the curves of a run up to date. A full disk is reported, but does not stop training."""
    rows = pd.DataFrame(history)
    rows.insert(0, "epoch", range(1, len(rows) + 1))
    try:
        store.write_atomic(place / f"{path}.csv", rows.to_csv(index=False).encode())
        _tell_board(place / path, history)
    except (OSError, StoreError) as error:
        tqdm.write(f"iekd: the curves of {path} are out of date: {error}")


def _tell_board(place: Path, history: list[dict]) -> None:
    """Write the last row to TensorBoard; at first, all rows, replacing those of a killed run."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return
    new = place not in _boards
    if new:
        _boards[place] = SummaryWriter(str(place), purge_step=1)
    for epoch in range(1 if new else len(history), len(history) + 1):
        for name, value in history[epoch - 1].items():
            if value is not None:
                _boards[place].add_scalar(name, value, epoch)
    _boards[place].flush()
