"""What the options of the command line are checked by: values, and names that no command has."""

from __future__ import annotations

import argparse
import re
import sys

from iekd.config import unknown_field
from iekd.config.hints import did_you_mean


def count(text: str) -> int:
    """A whole number from 1, as argparse's `type`."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1")
    return int(text)


def seconds(text: str) -> float:
    """A number above 0, as argparse's `type`."""
    try:
        if (number := float(text)) > 0:
            return number
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")


def megabytes(text: str) -> float:
    """A number from 0, as argparse's `type`."""
    try:
        if (number := float(text)) >= 0:
            return number
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no number of megabytes")


def spelled(words: list[str]) -> list[str]:
    """A command's words with its options as argparse knows them: notebooks and grids write `batch_size`."""
    end = words.index("--") if "--" in words else len(words)
    return [_with_hyphens(word) for word in words[:end]] + words[end:]


def _with_hyphens(word: str) -> str:
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if word.startswith("--") else word


def refuse(command: argparse.ArgumentParser, words: list[str]) -> None:
    """Exit with status 2 for words that a command does not know: what may have been meant, and where all its options are."""
    known = re.findall(r"--[\w-]+", command.format_help())
    for name in [
        word.split("=")[0] for word in words if word.startswith("-")
    ] or words:  # the others may be values of these
        if command.prog == "iekd run" and name.startswith("--"):
            print(f"{command.prog}: {unknown_field(name[2:].replace('-', '_'))}", file=sys.stderr)
        else:
            print(
                f"{command.prog}: {name}: no such option{did_you_mean(name, known)}; see {command.prog} --help",
                file=sys.stderr,
            )
    raise SystemExit(2)
