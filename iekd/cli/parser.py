"""How commands are declared, and the parser for all of them. Every field of a run is an option."""

import argparse
import functools
import importlib
import itertools
from collections.abc import Callable
from typing import Any

from iekd import __version__
from iekd.config import RunConfig, known, refuse_unread
from iekd.config.fields import choices

Options = argparse.Namespace
# The words of a command, its options, and the function that runs it.
COMMANDS: list[tuple[str, list[tuple], Callable[[Options], int | None]]] = []
# Where commands are declared, in the order of the help; and those that take the fields of a run.
FILES = ("runs", "results", "tools")
OF_RUNS = ("run", "sweep")
GROUPS = {"data": "list data sets, pack one into a compact form, or download a teacher"}
GRID = "a YAML file, for example runs/class.yaml"
IMPORT = "a Python file with methods or measures of your own, with any command; may be repeated"
# Of a run: all fields except the options of a reader's method, which have their own options.
FIELDS = [name for name in RunConfig.model_fields if name != "options"]


def option(name: str, help: str | None = None, **settings: Any) -> tuple:
    """An argument of a command, as argparse's `add_argument` takes it."""
    return name, {"help": help, **settings}


def flag(name: str, help: str) -> tuple:
    """An option without a value."""
    return option(name, help, action="store_true")


def command(words: str, *options: tuple) -> Callable:
    """Register the function that runs a command; its docstring is the command's help."""

    def register(do: Callable[[Options], int | None]) -> Callable[[Options], int | None]:
        COMMANDS.append((words, list(options), do))
        return do

    return register


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    for name in FILES:
        importlib.import_module(f"iekd.cli.{name}")
    about = "Knowledge distillation by inheritance and exploration: runs, grids and tables."
    parser = argparse.ArgumentParser(prog="iekd", description=about)
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--import", metavar="FILE", help=IMPORT)

    # No guessing by prefix: `--ft 3` could mean a different field tomorrow.
    exact: Any = functools.partial(argparse.ArgumentParser, allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=exact)
    groups = {"": commands}
    for words, options, do in COMMANDS:
        group, _, name = words.rpartition(" ")
        if group not in groups:
            made = commands.add_parser(group, help=GROUPS[group])
            groups[group] = made.add_subparsers(required=True, metavar="ACTION")
        one = groups[group].add_parser(name, help=do.__doc__)
        for name, settings in options + (_field_options() if words in OF_RUNS else []):
            one.add_argument(name, **settings)
        one.set_defaults(do=do, parser=one)
    return parser


def _field_options() -> list[tuple]:
    """One option per field of a run, and one per parameter of a reader's methods."""
    texts = dict.fromkeys(FIELDS + _own_options(), "of a method of your own")
    for name in FIELDS:
        values = ", ".join(map(str, choices(name)))
        text = f"{RunConfig.model_fields[name].description}{values and f'; one of {values}'}"
        texts[name] = text.replace("%", "%%")
    spelled = {f"--{name.replace('_', '-')}": text for name, text in texts.items()}
    return [option(name, text, metavar="VALUE") for name, text in spelled.items()]


def _own_options() -> list[str]:
    """The parameters of all methods registered by a reader."""
    found = itertools.chain(*(row.options for row in known.methods().values()))
    return [name for name in dict.fromkeys(found) if name not in FIELDS]


def given_fields(options: Options) -> dict[str, str]:
    """The fields of a run that were given, as written."""
    given = {name: getattr(options, name) for name in [*FIELDS, *_own_options()]}
    return {name: value for name, value in given.items() if value is not None}


def configuration(options: Options) -> RunConfig:
    """The run that the options describe. Fields that its method does not read are refused."""
    fields = given_fields(options)
    config = RunConfig.create(**fields)
    refuse_unread(fields, [config])
    return config
