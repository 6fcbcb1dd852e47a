"""Every test has a runs folder of its own; nothing is written into `runs/` of the checkout."""

import os

os.environ.setdefault(
    "CUDA_VISIBLE_DEVICES", ""
)  # bit-for-bit comparisons are made on the CPU; set it to test on a GPU
os.environ["OMP_NUM_THREADS"] = "1"  # also for the processes that tests start
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from tiny import tiny

from iekd.config import RunConfig, known
from iekd.method import registry
from iekd.records import Record, store
from iekd.training import runner

torch.set_num_threads(1)
# No test sees the records of the checkout beside its own.
store.EVIDENCE = store.EVIDENCE / "none"


# What trains for longer, starts processes, or executes pages: `pytest -m "not slow"` leaves it out.
SLOW = (
    "tests/training/",
    "tests/sweeps/",
    "tests/benchmark/",
    "tests/networks/",
    "tests/project/",
    "tests/method/test_methods",
    "tests/analysis/test_metrics.py",
    "tests/speed/test_memory.py",
    "tests/book/test_card.py",
    "tests/book/test_pictures.py",
    "tests/book/test_reading.py::test_an_executed",
    "tests/config/test_config.py::test_the_printed_command",
    "tests/data/test_own.py::test_a_sweep",
)


def pytest_collection_modifyitems(items):
    """Marks the tests of `SLOW`, and puts them first: no worker waits long for another at the end."""
    for item in items:
        if item.nodeid.startswith(SLOW):
            item.add_marker("slow")
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """The runs folder of the test."""
    folder = tmp_path / "runs"
    monkeypatch.setenv("IEKD_RUNS", str(folder))
    return folder


class Shelf:
    """A store of its own for runs that several tests need: each is trained once."""

    def __init__(self, folder: Path):
        self.folder = folder

    def train(self, config: RunConfig) -> Record:
        """The record of a run on the shelf."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("IEKD_RUNS", str(self.folder))
            return runner.train(config, progress=False)

    def lend(self, *configs: RunConfig, to: Path) -> None:
        """Copy the parents of these runs into another store."""
        for parent in {parent for config in configs for parent in config.parents().values()}:
            self.train(parent)
            for path in self.folder.glob(f"*/{parent.path}.*"):
                copy = to / path.relative_to(self.folder)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, copy)


@pytest.fixture(scope="session")
def shelf(tmp_path_factory):
    return Shelf(tmp_path_factory.mktemp("shelf"))


@pytest.fixture
def own_losses(monkeypatch):
    """What the test registers is forgotten afterwards, with the files that it imports."""
    monkeypatch.setenv("IEKD_IMPORT", "")
    known.load()
    tables = registry.METHODS, registry.MEASURES, registry.INHERIT, registry.EXPLORE
    before = [{*table} for table in tables]
    yield
    for table, names in zip(tables, before, strict=True):
        for name in {*table} - names:
            row = table.pop(name)
            thing = getattr(row, "kind", None) or getattr(row, "function", row)
            if not registry.is_ours(thing):
                sys.modules.pop(thing.__module__, None)


@pytest.fixture
def lent(shelf, runs):
    """The runs folder of the test, with teacher and auto-encoder of `tiny` in it."""
    shelf.lend(tiny("ie-ft"), to=runs)
    return runs


def pytest_configure():
    """A shell ignores Ctrl-C, and nohup SIGHUP, on behalf of what it starts in the background:
    tests of signals need them heard.
    """
    for number, handler in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)
