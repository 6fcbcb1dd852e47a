"""The command line: `runs` makes runs, `results` shows them, `tools` has the rest.

Torch, which takes seconds to import, is not imported before signals are handled.
"""

import argparse
import sys
from pathlib import Path

from iekd.cli import output
from iekd.training import signals
from iekd.training.signals import LATER


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns its exit status.

    0 done; 1 failed, with a message on standard error; 2 a wrong option; 75 (EX_TEMPFAIL) not
    finished, but nothing is wrong; 128 + number stopped by a signal (143 SIGTERM, 130 Ctrl-C).
    After the last two, the same command continues.
    """
    with output.kept() as printed:
        try:
            status = _command(sys.argv[1:] if arguments is None else arguments)
        except SystemExit as left:  # argparse: its help, or a wrong option
            status = left.code if isinstance(left.code, int) else 1
    if (lost := printed.error) is None or lost.errno in output.GONE:
        return status
    print(f"iekd: the output was lost: {lost.strerror}", file=sys.stderr)
    return status or 1


def _command(words: list[str]) -> int:
    with signals.on_signals():
        try:
            return _do(words)
        except signals.Stopped as stopped:
            print(
                f"iekd: stopped by {stopped}; the same command continues from the last checkpoint",
                file=sys.stderr,
            )
            return stopped.status


def _do(words: list[str]) -> int:
    from iekd.cli.options import refuse, spelled
    from iekd.cli.parser import parser
    from iekd.config.known import import_files
    from iekd.errors import OURS, Busy, ConfigError
    from iekd.training import ddp

    try:
        # The files of --import first: they may add methods, and with them options of `iekd run`.
        first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, prog="iekd")
        first.add_argument("--import", dest="files", action="append", default=[], type=Path)
        given, words = first.parse_known_args(words)
        import_files(given.files)

        # Then the command.
        options, unknown = parser().parse_known_args(spelled(words))
        if unknown:
            refuse(options.parser, unknown)
        if options.parser.prog != "iekd run" and ddp.launched() > 1:
            raise ConfigError(
                "torchrun is for iekd run, one run on several processes; "
                "start this command without it"
            )
        return options.do(options) or 0
    except OURS as error:
        print(f"iekd: {error}", file=sys.stderr)
        return LATER if isinstance(error, Busy) else 1
