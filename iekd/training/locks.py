"""Only one process at a time trains a run. The system releases its lock if the process dies."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from filelock import Timeout
from tqdm import tqdm

from iekd import records
from iekd.config import RunConfig
from iekd.errors import Busy
from iekd.records import store

BUSY = "another process trains this run"


@contextmanager
def claim(config: RunConfig, wait: bool = True) -> Iterator[None]:
    """Held by one process at a time while it trains this run.

    Raises `Busy` if another process holds it and `wait` is false, and `StoreError`, now rather than
    after training, if the record could not be written.
    """
    store.check_writable(records.record_path(config))
    path = store.cache_folder() / f"{config.path}.lock"
    with ExitStack() as held:
        try:
            held.enter_context(store.locked(path, wait=False))
        except Timeout:
            if not wait:
                raise Busy(f"{config.path}: {BUSY}") from None
            # about this moment, not the run: not part of a page's output
            tqdm.write(f"{config.path}: {BUSY}; waiting for its record", file=sys.stderr)
            held.enter_context(store.locked(path))
        yield
