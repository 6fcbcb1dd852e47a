"""One process at a time trains a run. The system frees its lock if the process dies."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from filelock import Timeout
from tqdm import tqdm

from iekd import records
from iekd.config import RunConfig
from iekd.errors import Busy
from iekd.records import store
from iekd.training import parallel

BUSY = "another process trains this run"
LOOK_AGAIN_SECONDS = 60.0  # until several processes ask again for a run that another one trains


@contextmanager
def claim(config: RunConfig, wait: bool = True) -> Iterator[None]:
    """Held by one process at a time while it trains this run. Raises `Busy` if another process holds it and this one shall not wait, and
    `StoreError`, now and not when it is trained, if its record could not be written."""
    store.check_writable(records.record_path(config))
    path = store.cache_folder() / f"{config.path}.lock"
    with ExitStack() as held:
        try:
            held.enter_context(store.locked(path, wait=False))
        except Timeout:
            if not wait:
                raise Busy(f"{config.path}: {BUSY}") from None
            tqdm.write(f"{config.path}: {BUSY}; waiting for its record")
            held.enter_context(store.locked(path))
        yield


@contextmanager
def claim_for_all(config: RunConfig, wait: bool) -> Iterator[None]:
    """`claim` by the first of several processes. They ask again and again: while it waited in a lock, the others would lose patience."""
    with ExitStack() as held:
        while not parallel.lead(_try_to_hold, held, config, wait):
            time.sleep(LOOK_AGAIN_SECONDS)
        yield


def _try_to_hold(held: ExitStack, config: RunConfig, wait: bool) -> bool:
    try:
        held.enter_context(claim(config, wait and parallel.count() == 1))
        return True
    except Busy as busy:
        if not wait:
            raise
        tqdm.write(f"{busy}; asking for it again every {LOOK_AGAIN_SECONDS:.0f} s")
        return False


def _alone_after_fork() -> None:
    """A forked process has none of the threads that its parent computed with, and would wait for them for ever: it computes with one."""
    torch.set_num_threads(1)
    records.provenance.cache_clear()  # which names the number of threads


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_alone_after_fork)
