"""Stopping cleanly on SIGTERM (a scheduler, a sweep), SIGINT (Ctrl-C) or SIGHUP."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

# Windows has the first two; the alarm is our own.
_NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGALRM")
SIGNALS = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
# Exit status, EX_TEMPFAIL of sysexits.h: not finished, but nothing is wrong; the same command
# continues.
LATER = 75
GRACE = 20.0  # seconds that an epoch gets to finish; SLURM kills 30 s after SIGTERM

# Signals are per process, so their state is too.
_first: int | None = None  # the signal that asked to stop
_patience: float | None = None  # seconds that it may wait for `check`; None = not at all


class Stopped(KeyboardInterrupt):
    """A signal asked this process to stop.

    `status` is the shell's 128 + number: 143 for SIGTERM, 130 for Ctrl-C.
    """

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


@contextmanager
def on_signals() -> Iterator[None]:
    """Inside, the signals raise `Stopped` in the main thread: at once, or within `deferred` at the
    next `check`.

    A signal that the parent process disabled (nohup) stays disabled.
    """
    global _first
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _on_signal)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _first = None


@contextmanager
def deferred(seconds: float = GRACE) -> Iterator[None]:
    """Inside, a signal waits for `check`, but at most that long; a second Ctrl-C ends the wait."""
    global _patience
    _patience = seconds
    try:
        yield
    finally:
        _patience = None
        _alarm_after(0)


def asked() -> bool:
    """Whether a signal has come."""
    return _first is not None


def check() -> None:
    """Raise `Stopped` if a signal has come."""
    if _first is not None:
        raise Stopped(_first)


def _on_signal(number: int, frame: object) -> None:
    """Schedulers signal a whole group, and sweeps forward signals: only a second Ctrl-C counts."""
    global _first
    repeated, _first = _first is not None, _first or number
    if repeated and number in (signal.SIGTERM, getattr(signal, "SIGHUP", None)):
        return
    if repeated or _patience is None:
        raise Stopped(_first)
    _alarm_after(_patience)
    # not print, which the signal may have interrupted
    name = signal.Signals(number).name
    os.write(2, f"\n{name}: stopping, in {_patience:.0f} s at the latest\n".encode())


def _alarm_after(seconds: float) -> None:
    """Raise SIGALRM after so many seconds; 0 = never."""
    if asked() and hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)
