"""Output never stops a command: not an old encoding, a closed pipe, or a full disk."""

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO

GONE = (errno.EPIPE, errno.EINVAL)  # `| head` has read enough; Windows says EINVAL


class Stream:
    """A text stream that keeps its first failure in `error`; later output is discarded."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.error: OSError | None = None

    def __getattr__(self, name: str):
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Like any stream's."""
        self._do(self.stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Like any stream's."""
        self._do(self.stream.flush)

    def _do(self, action, *words: str) -> None:
        try:
            action(*words)
        except OSError as error:
            self.error = self.error or error
            nowhere = os.open(os.devnull, os.O_WRONLY)
            # the interpreter flushes what is left when it exits
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)


@contextlib.contextmanager
def kept() -> Iterator[Stream]:
    """Inside the block, standard output and error do not raise; yields the first."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (Stream(_readable(stream)) for stream in before)
    try:
        yield sys.stdout
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def _readable(stream: TextIO | None) -> TextIO:
    """A stream for every character: UTF-8 for files and pipes, `?` on a terminal without it."""
    if stream is None:  # closed, `>&-`
        return io.StringIO()
    if isinstance(stream, io.TextIOWrapper):
        utf8 = not stream.isatty() and "PYTHONIOENCODING" not in os.environ
        stream.reconfigure(encoding="utf-8" if utf8 else None, errors="replace")
    return stream
