"""Checks for command-line options: value parsers, and the message for an unknown option."""

import argparse
import re
import sys

from iekd.config import unknown_field
from iekd.errors import did_you_mean


def count(text: str) -> int:
    """A whole number from 1, as argparse's `type`."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def seconds(text: str) -> float:
    """A number above 0, as argparse's `type`."""
    if (number := _number(text)) > 0:
        return number
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")


def megabytes(text: str) -> float:
    """A number from 0, as argparse's `type`."""
    if (number := _number(text)) >= 0:
        return number
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of megabytes")


def _number(text: str) -> float:
    """The number in a text; if there is none, nan, which is neither above nor below any number."""
    try:
        return float(text)
    except ValueError:
        return float("nan")


def spelled(words: list[str]) -> list[str]:
    """The words with options spelled for argparse: notebooks and grids write `batch_size`."""
    end = words.index("--") if "--" in words else len(words)
    found = list(words)
    for k, word in enumerate(words[:end]):
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            found[k] = name.replace("_", "-") + equals + value
    return found


def refuse(command: argparse.ArgumentParser, words: list[str]) -> None:
    """Exit with status 2 for unknown words, and suggest what may have been meant."""
    known = re.findall(r"--[\w-]+", command.format_help())
    options = [word.partition("=")[0] for word in words if word.startswith("-")]
    # Other unknown words may be values of these.
    for name in options or words:
        message = f"{name}: no such option{did_you_mean(name, known)}; see {command.prog} --help"
        if command.prog == "iekd run" and name.startswith("--"):
            message = unknown_field(name[2:].replace("-", "_"))
        print(f"{command.prog}: {message}", file=sys.stderr)
    raise SystemExit(2)
