"""What every notebook of the book does first: check its parameters, and make a configuration of them.

papermill only warns about a parameter that the notebook does not have, and injects values of any type. `parameters` reads the
notebook's own `parameters` cell (and the cell papermill injected) from the kernel's history and refuses both, before anything trains.
"""

from __future__ import annotations

import ast
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from iekd.config import ConfigError, RunConfig, refuse_unread
from iekd.hints import did_you_mean

np.set_printoptions(legacy="1.25")  # numbers print and glue as 1.23, not as np.float64(1.23)

TYPES = {"int": int, "float": float, "str": str, "bool": bool}
INJECTED = "# Parameters"  # the first line of the cell that papermill injects


def parameters() -> dict[str, Any]:
    """The notebook's parameters by name, checked. Raises `ConfigError` that lists the parameters there are.

    Call it in the first cell after the `parameters` cell, which holds lines `name: type = default  # help`.
    """
    from IPython import get_ipython

    shell = get_ipython()
    return check(shell.user_ns["In"], shell.user_ns)


def given() -> dict[str, Any]:
    """The notebook's parameters that are fields of `RunConfig`, checked, without '' and -1: these stand for the preset's own value.

    No preset names a seed: a seed of -1 is passed on, and refused there.
    """
    fields = {name: value for name, value in parameters().items() if name in RunConfig.model_fields}
    return {name: value for name, value in fields.items() if value not in ("", -1) or name == "seed"}


def run_config(**fields: Any) -> RunConfig:
    """The run that the notebook's parameters describe; arguments fill in what is no parameter there.

    A parameter that the method does not read is refused. (`given` cannot do that: on a page of several methods one of them may read it.)
    """
    own = given()
    config = RunConfig.create(**{**fields, **own})
    refuse_unread(own, [config])
    return config


def command(page: str) -> str:
    """The command that executes this page again with the parameters that papermill gave it: 'papermill book/mutual.ipynb out.ipynb'."""
    from IPython import get_ipython

    return again(page, get_ipython().user_ns["In"])


def again(page: str, sources: list[str]) -> str:
    """The work of `command` on plain data: the cells run so far."""
    lines = [line for source in sources if source.startswith(INJECTED) for line in ast.parse(source).body if isinstance(line, ast.Assign)]
    given = {ast.unparse(line.targets[0]): ast.literal_eval(line.value) for line in lines}
    return shlex.join(["papermill", f"book/{page}.ipynb", "out.ipynb", *(f"{w}" for item in given.items() for w in ("-p", *item))])


def train_arms(arms: Mapping[str, RunConfig], seeds: Iterable[int]) -> pd.DataFrame:
    """Train, or load, every arm (by its label) with every seed: one row a run as in `records.load`, and the column `label`."""
    from iekd import records, train

    configs = [(label, config.replace(seed=seed)) for seed in seeds for label, config in arms.items()]
    return pd.DataFrame([records.as_row(train(config, progress=False)) | {"label": label} for label, config in configs])


def check(sources: list[str], namespace: dict[str, Any]) -> dict[str, Any]:
    """The work of `parameters` on plain data: the cells run so far, and the values they left."""
    declared = {name: kind for source in sources if not source.startswith(INJECTED) for name, kind in _declared(source).items()}
    injected = [name for source in sources if source.startswith(INJECTED) for name in _assigned(source)]
    problems = [_unknown(name, declared) for name in injected if name not in declared]
    values = {}
    for name, kind in declared.items():
        value = namespace[name]
        if kind == "float" and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not TYPES[kind]:
            problems.append(f"{name}: {value!r} is no {kind}")
        values[name] = value
    if problems:
        known = "\n".join(f"  {name}: {kind}" for name, kind in declared.items())
        raise ConfigError(f"the parameters of this notebook are:\n{known}\n" + "\n".join(problems))  # last what a screen shows
    return values


def _declared(source: str) -> dict[str, str]:
    """Names and types of a cell that holds nothing but `name: type = default` lines; nothing for any other cell."""
    try:
        body = ast.parse(source).body
    except SyntaxError:  # a cell with a magic
        return {}
    if not body or not all(isinstance(line, ast.AnnAssign) and ast.unparse(line.annotation) in TYPES for line in body):
        return {}
    return {ast.unparse(line.target): ast.unparse(line.annotation) for line in body}


def _assigned(source: str) -> list[str]:
    return [ast.unparse(target) for line in ast.parse(source).body if isinstance(line, ast.Assign) for target in line.targets]


def _unknown(name: str, declared: dict[str, str]) -> str:
    return f"{name}: this notebook has no such parameter{did_you_mean(name, declared)}"
