"""The registered methods and measures: those of this library and those of a reader's files.

Files named in $IEKD_IMPORT (separated as in $PATH) are imported first, so that the processes of a
sweep know what these files register.
"""

import functools
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from iekd.checkout import ROOT
from iekd.errors import ConfigError, file_beside
from iekd.method import registry
from iekd.method.registry import EXPLORE, INHERIT, MEASURES, METHODS, Method


def methods() -> dict[str, Method]:
    """All methods by name: the paper's, the baselines, and the reader's."""
    load()
    return METHODS


def choices(field: str) -> tuple[str, ...]:
    """The names that a field of a run can have: method, inherit or explore."""
    load()
    if field == "method":
        return tuple(METHODS)
    return ("none", *{"inherit": INHERIT, "explore": EXPLORE}[field])


@functools.cache
def load() -> None:
    """Import every file that registers something: the library's, then those of $IEKD_IMPORT."""
    from iekd.baselines import STORY  # importing torch takes seconds

    story = [module.__name__ for module in STORY]
    for row in sorted(METHODS.values(), key=lambda row: _place(row, story)):
        METHODS[row.name] = METHODS.pop(row.name)
    for name in _named():
        import_file(name)


def _known_first(register: Callable) -> Callable:
    """A decorator of the registry as readers use it: a name of this library is refused at once."""

    @functools.wraps(register)
    def loaded_first(*args: Any, **kwargs: Any) -> Callable:
        load()
        return register(*args, **kwargs)

    return loaded_first


method = _known_first(registry.method)
measure = _known_first(registry.measure)


def _place(row: Method, story: list[str]) -> int:
    """The library's methods in the order of the story, then a reader's."""
    module = row.kind.__module__
    return story.index(module) if module in story else len(story)


def _named() -> list[str]:
    return [name for name in os.environ.get("IEKD_IMPORT", "").split(os.pathsep) if name]


def import_files(files: Iterable[str | Path], beside: Path = Path()) -> None:
    """Import files here, and in every process that is started from here.

    Their absolute paths are added to $IEKD_IMPORT. Relative paths start from the folder `beside`,
    else from the checkout's root. Raises `ConfigError` for a file that cannot be imported.
    """
    load()
    known = _named()
    for file in files:
        path = str(_found(Path(str(file)).expanduser(), beside))
        import_file(path)
        if path not in known:
            known.append(path)
    os.environ["IEKD_IMPORT"] = os.pathsep.join(known)


def _found(file: Path, beside: Path) -> Path:
    own, of_checkout = (folder / file for folder in (beside, ROOT))
    return (of_checkout if of_checkout.exists() and not own.exists() else own).resolve()


def import_file(name: str) -> None:
    """Import a Python file by its path, once, so that what it registers is known.

    Raises a `ConfigError` that names the file if it cannot be imported.
    """
    path = Path(name).expanduser().resolve()
    module = re.sub(r"\W", "_", path.stem)
    if getattr(sys.modules.get(module), "__file__", None) == str(path):
        return
    if module in sys.modules:
        raise ConfigError(f"{name}: a module named {module} is loaded already; rename the file")
    spec = importlib.util.spec_from_file_location(module, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(f"{name}: there is no such Python file{file_beside(path)}")
    sys.modules[module] = loaded = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(loaded)
    except Exception as error:
        del sys.modules[module]
        raise ConfigError(
            f"{name}: it cannot be imported ({type(error).__name__}: {error})"
        ) from error


def files_of(method: str, *measures: str) -> list[Path]:
    """The reader's files that register these, as they were imported, without notebooks."""
    load()
    things: list[Callable] = [METHODS[method].kind] if method in METHODS else []
    things += [MEASURES[name].function for name in measures if name in MEASURES]
    modules = dict.fromkeys(thing.__module__ for thing in things if not registry.is_ours(thing))
    modules.pop("__main__", None)
    files = [getattr(sys.modules.get(module), "__file__", None) for module in modules]
    return [Path(file) for file in files if file]
