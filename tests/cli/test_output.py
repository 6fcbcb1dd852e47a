"""No encoding, closed pipe or full disk ends a command, or a training, in a traceback."""

import io
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import made_up, tiny

from iekd import records
from iekd.cli import main, output

ROOT = Path(__file__).parents[2]
TABLE = ["table", "--preset", "smoke"]
COMMANDS = [
    ["--help"],
    ["run", "--help"],
    ["run", "--dry-run"],
    ["data", "list"],
    ["doctor"],
    TABLE,
    [*TABLE, "--format", "csv"],
    ["run", "--exlore"],
]


@pytest.fixture
def to(monkeypatch):
    """to(stream, words) -> (status, what stood on standard error): a command whose standard output
    is a stream.
    """

    def to(stream, *words, errors=None):
        errors = errors or io.StringIO()
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", errors)
        status = main.main(list(words))
        assert (sys.stdout, sys.stderr) == (stream, errors)
        if stream is not None:
            stream.close()  # as the interpreter's end does
        return status, errors.getvalue() if isinstance(errors, io.StringIO) else ""

    made_up(tiny("kd")).save()  # its pair is written with an arrow
    return to


def full() -> io.TextIOWrapper:
    """A file on a disk without room."""
    return Path("/dev/full").open("w", encoding="utf-8")


def gone() -> io.TextIOWrapper:
    """The writing end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w", encoding="utf-8")


@pytest.mark.parametrize(
    "encoding", ["cp1252", "ascii", "cp437", "latin-1", "gbk", "koi8-r", "utf-8"]
)
def test_any_encoding_that_was_asked_for(to, tmp_path, monkeypatch, encoding):
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    assert to((tmp_path / "out").open("w", encoding=encoding), *TABLE) == (0, "")
    text = (tmp_path / "out").read_text(encoding=encoding)
    assert "| KD, " in text and ("→" in text) == (encoding in ("gbk", "utf-8"))


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_a_file_or_a_pipe_gets_utf8_whatever_the_locale(to, tmp_path, monkeypatch, encoding):
    monkeypatch.delenv("PYTHONIOENCODING", raising=False)
    assert to((tmp_path / "out").open("w", encoding=encoding), *TABLE) == (0, "")
    assert "→" in (tmp_path / "out").read_text(encoding="utf-8")


def test_a_terminal_keeps_its_encoding(tmp_path, monkeypatch):
    class Terminal(io.TextIOWrapper):
        def isatty(self):
            return True

    stream = Terminal((tmp_path / "out").open("wb"), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", stream)
    with output.kept():
        print("→ ±")
    stream.close()
    assert (tmp_path / "out").read_bytes() == "? ±\n".encode("cp1252")


def test_a_name_that_is_no_unicode(tmp_path, monkeypatch):
    stream = (tmp_path / "out").open("w", encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", stream)
    with output.kept():
        print(os.fsdecode(b"/home/m\xfcller"))
    stream.close()
    assert (tmp_path / "out").read_text(encoding="utf-8") == "/home/m?ller\n"


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_reader_that_has_gone_and_a_full_disk_and_a_closed_stream(to, words):
    usual = 2 if "--exlore" in words else 0
    assert to(gone(), *words)[0] == usual
    status, errors = to(full(), *words)
    lost = "iekd: the output was lost: No space left on device\n"
    assert (status, lost in errors) == (
        (2, False) if usual else (1, True)
    ) and "Traceback" not in errors
    assert to(None, *words)[0] == usual


def test_a_training_goes_on_without_its_reader(to):
    words = shlex.split(tiny(seed=5).command())[1:]
    assert to(gone(), *words, errors=gone())[0] == 0 and records.find(tiny(seed=5))
    words = shlex.split(tiny(seed=6).command())[1:]
    assert to(full(), *words)[0] == 1 and records.find(tiny(seed=6))


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_the_interpreter_has_nothing_left_to_complain_about(unbuffered):
    """Its own flush at the end, which no `except` reaches."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": unbuffered,
        "PYTHONWARNINGS": "ignore",
    }
    with gone() as stdout:
        done = subprocess.run(
            [sys.executable, "-m", "iekd", "run", "--help"],
            stdout=stdout,
            stderr=subprocess.PIPE,
            env=environment,
        )
    assert (done.returncode, done.stderr) == (0, b"")
