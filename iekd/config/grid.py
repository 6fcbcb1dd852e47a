"""Grids as data: a YAML file that names many runs.

title: Ablations at class scale
notebook: book/run.ipynb          # the notebook that makes one of these runs with papermill
import: my_losses.py              # your own methods and measures, next to this file; or a list
base: {preset: class, seed: [0, 1, 2, 3, 4]}
runs:
  - {method: ie-ft, explore: [l1, cka]}    # lists multiply
  - {method: ft, seed: 0..9}               # ten seeds
"""

import functools
import itertools
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml

from iekd.checkout import ROOT
from iekd.config import RunConfig, refuse_unread, strict
from iekd.config.known import import_files
from iekd.errors import ConfigError, file_beside

KEYS = ("title", "notebook", "import", "base", "runs")
RANGE = re.compile(r"(\d+)\.\.(\d+)")  # of seeds, both ends included
OF_A_RUN = re.compile(r"seed\d+(\.\w+)?\.json")
SEVERAL = re.compile(r"[\d.]+ *(-|,|\.\.) *[\d.]+")  # ways in which people write several numbers
NEEDED = "it needs a list `runs:` of mappings"


def read(path: Path) -> list[RunConfig]:
    """The runs of a grid file, each once, by seed: a sweep cut short leaves whole comparisons.

    Imports the files that it names. Raises a `ConfigError` that names the file and the entry.
    """
    grid = _content(path)
    base, found = grid.get("base") or {}, []
    where = "import"
    try:
        files = grid.get("import") or []
        import_files(files if isinstance(files, list) else [files], path.parent)
        for number, entry in enumerate(grid["runs"], 1):
            where = f"run {number}"
            configs = runs({**base, **entry})
            refuse_unread(entry, configs)
            found += configs

        # A field of the base need only be read by one entry.
        where = "base"
        refuse_unread(base, found)
    except ConfigError as error:
        raise ConfigError(f"{path}, {where}: {error}") from None
    unique = {config.path: config for config in found}
    return sorted(unique.values(), key=lambda config: config.seed)


def _content(path: Path) -> dict[str, Any]:
    """A grid file's mapping, with its keys and their types checked. Raises `ConfigError`."""
    if OF_A_RUN.fullmatch(path.name):
        raise ConfigError(f"{path} is not a grid: it is the record of a run, for `iekd show`")
    try:
        grid = strict.read(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}{file_beside(path)}") from None
    except ConfigError as error:
        raise ConfigError(f"{path}, {error}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path} is not a grid: {NEEDED}, and is no YAML ({error})") from None

    # The types of its values.
    runs = grid.get("runs") if isinstance(grid, dict) else None
    mappings = [grid.get("base") or {}, *runs] if isinstance(runs, list) else [None]
    if not all(isinstance(each, dict) for each in mappings):
        example = "`- {method: kd}`; `base:` is one mapping"
        raise ConfigError(f"{path} is not a grid: {NEEDED}, {example}")
    if unknown := [name for name in grid if name not in KEYS]:
        raise ConfigError(
            f"{path}: {', '.join(unknown)}: no such key; the keys of a grid are {', '.join(KEYS)}"
        )
    if not runs:
        raise ConfigError(f"{path} has no runs")
    return grid


def runs(entry: dict[str, Any]) -> list[RunConfig]:
    """The runs of one entry: every combination of its lists. Raises `ConfigError`."""
    if "seed" in entry:
        entry = {**entry, "seed": seeds(entry["seed"])}
    for name, value in entry.items():
        if value == []:
            raise ConfigError(f"{name}: an empty list, so the entry has no runs")
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, str) and SEVERAL.fullmatch(each):
                way = "a list, [0, 1, 2]" + (", or 0..2" if name == "seed" else "")
                raise ConfigError(f"{name}: {each!r} is not a value; write several as {way}")
    return [RunConfig.create(**fields) for fields in expand(entry)]


def seeds(value: Any) -> Any:
    """Seeds of a grid, in which '0..4', alone or in a list, means five seeds."""
    found: list[Any] = []
    for each in value if isinstance(value, list) else [value]:
        ends = RANGE.fullmatch(str(each))
        found += range(int(ends[1]), int(ends[2]) + 1) if ends else [each]
    return found


def find(name: str) -> Path:
    """A grid by its path, or by the name of a file in `runs/` of the checkout."""
    path = Path(name).expanduser()
    return path if path.exists() else ROOT / "runs" / name


def for_page(name: str, need: str, wanted: Callable[[RunConfig], bool]) -> list[RunConfig]:
    """The runs of a grid (see `find`) that a page shows in one table.

    Raises `ConfigError` if none is `wanted` (`need` describes such a run), or if they differ in
    preset, data set or pair.
    """
    configs = read(find(name))
    if not any(map(wanted, configs)):
        methods = ", ".join(dict.fromkeys(config.method for config in configs))
        raise ConfigError(
            f"grid {name}: this page needs {need} in its grid, which has only {methods}"
        )
    refuse_mixed(configs, f"grid {name}: this page")
    return configs


def refuse_mixed(configs: Iterable[RunConfig], who: str) -> None:
    """Raise `ConfigError` for runs that cannot share a table: other preset, data set or pair."""
    for field in ("preset", "dataset", "teacher", "student"):
        values = dict.fromkeys(getattr(config, field) for config in configs)
        values.pop("none", None)
        if len(values) > 1:
            raise ConfigError(
                f"{who} shows one {field}, and the grid has {', '.join(values)}: make a grid for "
                "each"
            )


def holding(paths: Iterable[str]) -> list[str]:
    """A few grids of the checkout that together hold these runs, chosen greedily.

    They are given as paths from the checkout. Runs in no grid are left out: those of live cells,
    teachers and auto-encoders.
    """
    left, chosen = set(paths), list[str]()
    while True:
        held = {name: left & runs for name, runs in _grids().items()}
        most = max(held, key=lambda name: len(held[name]), default=None)
        if most is None or not held[most]:
            return sorted(chosen)
        chosen.append(most)
        left -= held[most]


@functools.cache
def _grids() -> dict[str, set[str]]:
    """The paths of the runs of each grid in `runs/` of the checkout, by the grid's path.

    Includes the second networks of mutual training.
    """
    grids = {}
    folders = ROOT / "runs", ROOT / "runs" / "paper"
    for file in [file for folder in folders for file in sorted(folder.glob("*.yaml"))]:
        configs = read(file)
        partners = {config.partner().path for config in configs if config.is_mutual}
        paths = {config.path for config in configs}
        grids[str(file.relative_to(ROOT))] = paths | partners
    return grids


def notebook(path: Path) -> str:
    """The notebook that makes one run of a grid with papermill."""
    return _content(path).get("notebook", "book/run.ipynb")


def expand(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """Every combination of the entry's lists."""
    values = [value if isinstance(value, list) else [value] for value in entry.values()]
    return [
        dict(zip(entry, combination, strict=True)) for combination in itertools.product(*values)
    ]


def with_parents(configs: list[RunConfig]) -> dict[str, RunConfig]:
    """The runs and all that they depend on, by path, parents before children."""
    ordered: dict[str, RunConfig] = {}
    for config in configs:
        ordered |= with_parents(list(config.parents().values()))
        ordered[config.path] = config
    return ordered
