"""Signals: what is under way is finished, nothing is lost, and patience has an end."""

import signal
import time

import pytest
from tiny import content, tiny

from iekd import records
from iekd.records import store
from iekd.training import loop, signals
from iekd.training.runner import train
from iekd.training.signals import Stopped

CONFIG = tiny(epochs=8)


def test_a_signal_stops_at_once_what_does_not_defer_it():
    with pytest.raises(Stopped, match="SIGTERM") as stopped, signals.on_signals():
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("went on")
    assert stopped.value.status == 143


def test_a_deferred_signal_waits_for_check_and_a_repeated_one_is_the_same(capfd):
    with pytest.raises(Stopped, match="SIGHUP"), signals.on_signals(), signals.deferred():
        assert not signals.asked()
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGHUP):
            signal.raise_signal(number)
        assert signals.asked()
        signals.check()
    assert capfd.readouterr().err.count("stopping, in 20 s at the latest") == 1
    assert not signals.asked()  # the next one starts afresh


def test_a_second_ctrl_c_does_not_wait():
    with pytest.raises(Stopped, match="SIGTERM"), signals.on_signals(), signals.deferred():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("waited")


def test_patience_has_an_end_and_then_no_alarm_is_left():
    with pytest.raises(Stopped, match="SIGTERM"), signals.on_signals(), signals.deferred(0.01):
        signal.raise_signal(signal.SIGTERM)
        time.sleep(10)
        pytest.fail("waited")
    with pytest.raises(Stopped), signals.on_signals(), signals.deferred(0.01):
        signal.raise_signal(signal.SIGTERM)
        signals.check()
    time.sleep(0.02)


def test_what_the_parent_process_switched_off_stays_off():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.on_signals():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_stopped_in_every_epoch_ends_as_one_that_never_was(monkeypatch, tmp_path):
    calm, epoch, stops = content(train(CONFIG, progress=False)), loop.train_epoch, []
    monkeypatch.setenv("IEKD_RUNS", str(tmp_path / "stopped"))

    def train_epoch(*arguments):
        signal.raise_signal(signal.SIGTERM)
        return epoch(*arguments)

    monkeypatch.setattr(loop, "train_epoch", train_epoch)
    while not records.find(CONFIG):
        try:
            with signals.on_signals():
                train(CONFIG, progress=False)
        except Stopped:
            stops.append(
                store.cache_folder()
                .joinpath(f"{CONFIG.path}.checkpoint.safetensors")
                .stat()
                .st_size
            )
    assert (
        len(stops) == CONFIG.epochs - 1
    )  # every stop kept its epoch; the last epoch ended the run
    assert content(records.find(CONFIG)) == calm
