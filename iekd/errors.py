"""Errors; each message names the cause and the way out."""

import difflib
from collections.abc import Iterable
from pathlib import Path


class ConfigError(ValueError):
    """A parameter that cannot be used; the message lists what can."""

    def _render_traceback_(self) -> list[str]:
        """A notebook shows only the message: a traceback into the library does not help with a
        typo.
        """
        return [f"{type(self).__name__}: {self}"]


class DataError(RuntimeError):
    """Data that is missing or damaged; the message names the file and the remedy."""


class StoreError(RuntimeError):
    """A file that cannot be written, read or trusted; the message names it and the way out."""


class TrainingError(RuntimeError):
    """A run that cannot continue; the message says where it stopped and what to do."""


class Busy(TrainingError):
    """Another process is training this run."""


OURS = (ConfigError, DataError, StoreError, TrainingError)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """' (did you mean ...?)' with the closest known name; '' if none is close."""
    close = difflib.get_close_matches(name.lower(), known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def file_beside(path: Path) -> str:
    """The same for a missing file, among the files in its folder."""
    return "" if path.exists() else did_you_mean(path.name, (f.name for f in path.parent.glob("*")))
