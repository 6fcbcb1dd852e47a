"""Curves while a run trains: the rows of its record, in a file of its own, and never in its way."""

import sys
from types import SimpleNamespace

import pandas as pd
import pytest
from tiny import tiny

from iekd.errors import StoreError
from iekd.records import store
from iekd.training import log, runner


@pytest.fixture
def curves(tmp_path, monkeypatch):
    monkeypatch.setenv("IEKD_LOG", str(tmp_path / "curves"))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # as if not installed
    return tmp_path / "curves"


def test_the_curves_are_those_of_the_records(curves):
    config = tiny("ie-ft")
    record = runner.train(config, progress=False)
    for each in (config, *config.parents().values()):
        found = pd.read_csv(curves / f"{each.path}.csv")
        history = runner.finished(each).history
        assert list(found["epoch"]) == list(range(1, each.epochs + 1))
        assert found["loss"].tolist() == pytest.approx(history["loss"], rel=1e-6)
    assert set(found) - {"epoch"} <= set(record.history) | set(history)


def test_tensorboard_gets_every_row_once(curves, monkeypatch):
    rows = []

    class Writer:
        def __init__(self, folder, purge_step):
            assert purge_step == 1

        def add_scalar(self, name, value, epoch):
            rows.append((epoch, name, value))

        def flush(self):
            pass

    module = SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(log, "_boards", {})
    history = [{"loss": 3.0, "test_error": None}, {"loss": 2.0}, {"loss": 1.0}]
    log.write(curves, "a/seed0", history[:2])  # a run that was resumed in its second epoch
    log.write(curves, "a/seed0", history)
    assert rows == [(1, "loss", 3.0), (2, "loss", 2.0), (3, "loss", 1.0)]


def test_a_disk_that_fills_up_stops_no_training(curves, monkeypatch, capsys):
    whole = store.write_atomic

    def full(path, content):
        if path.suffix == ".csv":
            raise StoreError(f"{path}: No space left on device")
        whole(path, content)

    monkeypatch.setattr(log.store, "write_atomic", full)
    assert runner.train(tiny(), progress=False).last.test_error < 90
    assert "are out of date" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_said_before_training(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("IEKD_LOG", str(tmp_path / "file" / "curves"))
    with pytest.raises(StoreError, match="file"):
        runner.train(tiny(), progress=False)
    assert runner.finished(tiny()) is None
