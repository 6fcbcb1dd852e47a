"""Grids as data: a YAML file that names many runs.

title: Ablations at class scale
notebook: book/run.ipynb          # the notebook that makes one of these runs with papermill
base: {preset: class, seed: [0, 1, 2, 3, 4]}
runs:
  - {method: ie-ft, explore: [l1, cka]}    # lists multiply
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from iekd import data, networks
from iekd.checkout import ROOT
from iekd.config import RunConfig, refuse_unread, strict
from iekd.errors import ConfigError

KEYS = ("title", "notebook", "base", "runs")


def read(path: Path) -> list[RunConfig]:
    """The runs of a grid file, each once, seed by seed: a sweep cut short leaves complete comparisons.

    Raises `ConfigError` that names the file and the entry.
    """
    grid = _content(path)
    base = grid.get("base") or {}
    entries = [{**base, **entry} for entry in grid["runs"]]
    found = []
    for number, entry in enumerate(entries, 1):
        try:
            found.append(_configs(entry))
            refuse_unread(grid["runs"][number - 1], found[-1])
        except ConfigError as error:
            raise ConfigError(f"{path}, run {number}: {error}") from None
    configs = {config.path: config for config in itertools.chain(*found)}
    try:
        refuse_unread(
            base, list(configs.values())
        )  # of the base it is enough that one entry reads it
    except ConfigError as error:
        raise ConfigError(f"{path}, base: {error}") from None
    return sorted(configs.values(), key=lambda config: config.seed)


def _content(path: Path) -> dict[str, Any]:
    """A grid file's mapping: known keys, `base` a mapping or nothing, `runs` a list of mappings. Raises `ConfigError`."""
    try:
        grid = strict.read(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except ConfigError as error:
        raise ConfigError(f"{path}, {error}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(
            f"{path} is not a grid: it needs a list `runs:` of mappings, and is no YAML ({error})"
        ) from None
    runs, base = (
        (grid.get("runs"), grid.get("base") or {}) if isinstance(grid, dict) else (None, {})
    )
    if not isinstance(runs, list) or not all(isinstance(each, dict) for each in (base, *runs)):
        raise ConfigError(
            f"{path} is not a grid: it needs a list `runs:` of mappings, `- {{method: kd}}`; `base:` is one mapping"
        )
    if unknown := [name for name in grid if name not in KEYS]:
        raise ConfigError(
            f"{path}: {', '.join(unknown)}: no such key; the keys of a grid are {', '.join(KEYS)}"
        )
    if not runs:
        raise ConfigError(f"{path} has no runs")
    return grid


def _configs(entry: dict[str, Any]) -> list[RunConfig]:
    """The runs of one entry. Raises `ConfigError`."""
    for name, value in entry.items():
        if value == []:
            raise ConfigError(f"{name}: an empty list, so the entry has no runs")
        if isinstance(value, str) and re.fullmatch(r"[\d.]+ *(-|,|\.\.) *[\d.]+", value):
            raise ConfigError(f"{name}: {value!r} is no value; write several as a list, [0, 1, 2]")
    return [RunConfig.create(**fields) for fields in expand(entry)]


def find(name: str) -> Path:
    """A grid by its path, or by the name of a file in `runs/` of the checkout (wherever $IEKD_RUNS keeps the records)."""
    path = Path(name).expanduser()
    return path if path.exists() else ROOT / "runs" / name


def for_page(name: str, need: str, wanted: Callable[[RunConfig], bool]) -> list[RunConfig]:
    """The runs of a grid (see `find`) that a page shows in one table.

    Raises `ConfigError` if none is `wanted` (`need` says which that is), or if they are not of one preset, data set and pair.
    """
    configs = read(find(name))
    if not any(map(wanted, configs)):
        methods = ", ".join(dict.fromkeys(config.method for config in configs))
        raise ConfigError(
            f"grid {name}: this page needs {need} in its grid, which has only {methods}"
        )
    for field in ("preset", "dataset", "teacher", "student"):
        if (
            len(
                found := dict.fromkeys(
                    value for c in configs if (value := getattr(c, field)) != "none"
                )
            )
            > 1
        ):
            raise ConfigError(
                f"grid {name}: this page shows one {field}, and the grid has {', '.join(found)}: make a grid for each"
            )
    return configs


def holding(paths: Iterable[str]) -> list[str]:
    """Few grids of the checkout that together hold these runs, each by its path from there: always the one that holds most of the rest.

    Runs that no grid names are left out: those of the live cells, teachers and auto-encoders.
    """
    left, chosen = set(paths), []
    while (
        left
        and (most := max(_grids().items(), key=lambda item: len(item[1] & left), default=None))
        and most[1] & left
    ):
        chosen.append(most[0])
        left -= most[1]
    return sorted(chosen)


@functools.cache
def _grids() -> dict[str, frozenset[str]]:
    """The grids in `runs/` of the checkout: the paths of all runs that each names, the second networks of mutual training with them."""
    root = ROOT
    return {
        str(file.relative_to(root)): frozenset(
            path
            for c in read(file)
            for path in (c.path, *([c.partner().path] if c.is_mutual else []))
        )
        for folder in ("runs", "runs/paper")
        for file in sorted((root / folder).glob("*.yaml"))
    }


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
    """The runs and all that they need, by path, parents before children."""
    ordered: dict[str, RunConfig] = {}
    for config in configs:
        ordered |= with_parents(list(config.parents().values()))
        ordered[config.path] = config
    return ordered


def cost(config: RunConfig) -> float:
    """About how many floating-point operations the training takes: to order runs and to guess the time left, not to report.

    The gradient costs twice the forward pass; a teacher has only the latter. The second of two networks that are trained together
    costs nothing more.
    """
    if "first" in config.parents():
        return 0.0
    _, _, side = data.image_shape(config)
    shares = [(config.student, 3), (config.teacher, 3 if config.is_mutual else 1)]
    image = sum(
        share * flops(name, config.dataset, side) for name, share in shares if name != "none"
    )
    return float(config.epochs * data.image_count(config) * image)


@functools.cache
def flops(network: str, dataset: str, side: int) -> int:
    """Floating-point operations of one image's forward pass."""
    facts = data.FACTS[dataset]
    with (
        torch.device("meta"),
        torch.no_grad(),
        FlopCounterMode(display=False) as counter,
    ):  # shapes only
        networks.build(network, facts.num_classes, facts.channels).eval()(
            torch.empty(1, facts.channels, side, side)
        )
    return counter.get_total_flops()
