"""What every notebook of the book does first: check its parameters and build a configuration from
them.

A page names what it reads: `notebook.parameters("preset, seeds >= 2")`. The values are those of its
variables at that point, however the parameters cell was written and whatever runs it. Mistakes are
refused before anything trains: a name that the page does not read, one that no line or two lines
set, a value of another type or out of range. `iekd.cells` reads the lines.
"""

import functools
import inspect
import itertools
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_origin

import numpy as np
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from iekd import cells
from iekd.config import RunConfig, refuse_unread
from iekd.config.fields import choices
from iekd.errors import ConfigError, did_you_mean

np.set_printoptions(legacy="1.25")  # numbers print and glue as 1.23, not as np.float64(1.23)

TYPES = {"int": int, "float": float, "str": str, "bool": bool}
INLINE = "module://matplotlib_inline.backend_inline"
DECLARATION = re.compile(r"(\w+)(?: *: *(int|float|str|bool))?(?: *>= *(\d+))?")
# YAML, and so papermill -f, reads 1e-3 as text
EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+", re.ASCII)


def _folder(name: str) -> str:
    """A folder of reports; '' means the checkout's own."""
    path = Path(name).expanduser()
    if name and not path.is_dir():
        raise ValueError(f"there is no such folder (seen from {Path.cwd()})")
    if name and not any(path.glob("*.json")):
        raise ValueError("there is no report (*.json) in this folder")
    return str(path) if name else ""


def _registered(name: str, value: str) -> str:
    """A name registered by this library or by the reader."""
    if value not in (known := choices(name)):
        raise ValueError(f"choose one of {', '.join(known)}")
    return value


def _options(text: str) -> str:
    """Parameters of a reader's own method, 'gap_weight=3, rank=8'."""
    if any(not re.fullmatch(r"\w+=[^\s=]+", word) for word in listed(text)):
        raise ValueError("write name=value, several with commas")
    return text


# Parameters of pages that are not fields of a run: their types and ranges, the same in all
# chapters.
OWN = {
    "seeds": Annotated[int, Field(ge=1)],
    "minutes": Annotated[int, Field(ge=1)],
    "rate": Annotated[float, Field(gt=0)],
    "power": Annotated[float, Field(gt=0, lt=1)],
    "folder": Annotated[str, AfterValidator(_folder)],
    "exercises": bool,
    "options": Annotated[str, AfterValidator(_options)],
    **dict.fromkeys(("measures_tried", "methods_tried", "grid", "search", "metric"), str),
}


class Parameter(NamedTuple):
    """A parameter that a page reads: name, type, range, and its minimum on this page, if any."""

    name: str
    type: type
    range: TypeAdapter
    least: int | None

    def usable(self, value: Any) -> Any:
        """The value as the parameter's type. Raises `ConfigError` for a wrong type or range."""
        if self.type is float and isinstance(value, str) and EXPONENT.fullmatch(value):
            value = float(value)
        if type(value) not in {float: (float, int)}.get(self.type, (self.type,)):
            raise ConfigError(f"{self.name}: {value!r} is no {self.type.__name__}")
        # stands for the preset's own value
        unset = self.name in RunConfig.model_fields and self.name != "seed" and value in ("", -1)
        try:
            value = self.type(value) if unset else self.range.validate_python(value)
        except ValidationError as error:
            raise ConfigError(f"{self.name}: {value!r} is not usable; {_allowed(error)}") from None
        if self.least is not None and value < self.least and not unset:
            raise ConfigError(
                f"{self.name}: {value!r} is not usable; this page needs at least {self.least}"
            )
        return value


def parameters(*names: str) -> dict[str, Any]:
    """The notebook's parameters by name, checked: `parameters("preset, seeds >= 2", "share:
    float")`.

    Call it below the parameters cell with every name that the notebook reads. A name that is
    neither a field of a run nor in `OWN` needs its type. Raises a `ConfigError` that lists the
    available parameters and names the lines at fault.
    """
    namespace = _namespace()
    values = check(names, cells.executed(namespace), namespace)
    namespace.update(values)  # 1 becomes 1.0 where a float is meant
    _show_figures()
    return values


def given(*names: str) -> dict[str, Any]:
    """The notebook's parameters that are fields of `RunConfig`, checked, without '' and -1.

    These stand for the preset's own value. No preset names a seed: a seed of -1 is refused.
    """
    fields = {k: v for k, v in parameters(*names).items() if k in RunConfig.model_fields}
    found = {name: value for name, value in fields.items() if value not in ("", -1)}
    if "options" in found:
        found["options"] = dict(word.split("=") for word in listed(found["options"]))
    return found


def run_config(*names: str, **fields: Any) -> RunConfig:
    """The run that the notebook's parameters describe (see `parameters`); `fields` supplies what is
    not a parameter there.

    A parameter that the method does not read is refused. (`given` cannot do that: on a page with
    several methods, one of them may read it.)
    """
    own = given(*names)
    config = RunConfig.create(**{**fields, **own})
    refuse_unread(own, [config])
    return config


def exercise(check: Callable[..., str]) -> Callable[..., None]:
    """Makes a function that says whether an answer is right.

    `check` takes the answer. It fails an assertion whose message says what is wrong, or returns why
    the answer is right. `...`, or a function that returns `...`, does not count as an answer yet.

    >>> @exercise
    ... def check_bits(answer):
    ...     assert answer == 8, f"a byte has not {answer} bits"
    ...     return "2**8 = 256 values"
    >>> check_bits(...), check_bits(7), check_bits(8)
    Nothing to check yet: replace the dots.
    Not yet: a byte has not 7 bits
    Right: 2**8 = 256 values
    (None, None, None)
    """

    @functools.wraps(check)
    def say(*answers: Any) -> None:
        try:
            print(f"Right: {check(*(_filled(answer) for answer in answers))}")
        except _NothingYet:
            print("Nothing to check yet: replace the dots.")
        except Exception as problem:  # a student's answer may raise anything
            kind = "" if isinstance(problem, AssertionError) else f"{type(problem).__name__}: "
            print(f"Not yet: {kind}{problem}")

    return say


class _NothingYet(Exception):
    """The dots of an exercise are still there."""


def _filled(answer: Any) -> Any:
    """The answer; a function is wrapped to raise `_NothingYet` where it returns dots."""
    if any(part is ... for part in (answer if isinstance(answer, tuple) else (answer,))):
        raise _NothingYet
    if not inspect.isfunction(answer):
        return answer
    return functools.wraps(answer)(lambda *given, **named: _filled(answer(*given, **named)))


def listed(text: str) -> list[str]:
    """The names listed in a text: 'kd, ft,' gives ['kd', 'ft']."""
    return re.findall(r"[^\s,]+", text)


def command(page: str) -> str:
    """The command that executes this page again with the parameters that papermill passed."""
    return again(page, cells.executed(_namespace()))


def again(page: str, sources: Iterable[str]) -> str:
    """The work of `command` on plain data: the cells run so far."""
    given: dict[str, str] = {}
    for line in itertools.chain(*(cells.read(source).lines for source in sources)):
        if line.injected and line.literal is not cells.NO_LITERAL:
            given[line.names[0]] = str(line.literal)
    words = [word for item in given.items() for word in ("-p", *item)]
    return shlex.join(["papermill", f"book/{page}.ipynb", "out.ipynb", *words])


def check(
    names: Iterable[str], sources: Sequence[str], namespace: Mapping[str, Any]
) -> dict[str, Any]:
    """The work of `parameters` on plain data: names, the cells run so far, their variables."""
    declared = declarations(names)
    lines = cells.before_check(sources, set(declared))
    if not any(name in declared for line in lines for name in line.names):
        raise ConfigError(
            f"no cell was run that sets {', '.join(declared)}: run the parameters cell, then this "
            "one"
        )
    values, problems = {}, []
    foreign = [(name, line) for line in lines for name in line.names if name not in declared]
    for name, line in foreign:
        if line.injected or name[0] != "_":
            own = "" if line.injected else " (names of your own begin with _)"
            hint = did_you_mean(name, declared) or own
            where = f"in the line `{line.text}`"
            problems.append(f"{name}: this notebook has no such parameter{hint}, {where}")
    for parameter in declared.values():
        try:
            values[parameter.name] = _value(parameter, lines, namespace)
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        known = "\n".join(f"  {p.name}: {p.type.__name__}" for p in declared.values())
        # the problems last, where a screen shows them
        raise ConfigError(f"the parameters of this notebook are:\n{known}\n" + "\n".join(problems))
    return values


def declarations(names: Iterable[str]) -> dict[str, Parameter]:
    """The parameters that a page names ('preset, seeds >= 2'), by name."""
    words = [word.strip() for text in names for word in text.split(",")]
    if not words:
        raise ConfigError(
            "name the parameters that this notebook reads, for example "
            'notebook.parameters("seed, seeds")'
        )
    return {parameter.name: parameter for parameter in map(_declaration, words)}


@functools.cache
def _declaration(word: str) -> Parameter:
    if not (found := DECLARATION.fullmatch(word)):
        raise ConfigError(
            f"{word!r} declares no parameter; write its name, for example 'seeds' or 'share: "
            "float' or 'seeds >= 2'"
        )
    name, kind, least = found.groups()
    if name in ("method", "inherit", "explore"):
        allowed: Any = Annotated[str, AfterValidator(functools.partial(_registered, name))]
    elif name in RunConfig.model_fields and name not in OWN:
        field = RunConfig.model_fields[name]
        allowed = field.annotation
        if field.metadata:
            allowed = Annotated[(allowed, *field.metadata)]
    elif name in OWN or kind:
        allowed = OWN.get(name, TYPES.get(kind))
    else:
        raise ConfigError(
            f"{name}: of which type? write it with the name, for example '{name}: int'"
        )
    base = get_args(allowed)[0] if get_origin(allowed) is Annotated else allowed
    finite = TypeAdapter(allowed, config=ConfigDict(allow_inf_nan=False))
    return Parameter(name, base if base in TYPES.values() else str, finite, least and int(least))


def _value(parameter: Parameter, lines: Sequence[cells.Line], namespace: Mapping[str, Any]) -> Any:
    """The parameter's value. Raises a `ConfigError` that names the line."""
    name = parameter.name
    own = [line for line in lines if name in line.names]
    if not own:
        raise ConfigError(
            f"{name}: no line sets it; the parameters cell needs `{name} = ...`. Then run the "
            "cells again from the top"
        )
    line = own[-1]
    if name not in namespace:
        raise ConfigError(
            f"{name}: the line `{line.text}` left no value here; take it out of its magic, loop "
            "or condition"
        )
    for before, after in itertools.pairwise(own):
        # papermill's cell follows the parameters cell and overrides it
        if not after.injected:
            tagged = "give the cell of the second the tag `parameters`"
            way_out = tagged if before.injected else "keep one"
            raise ConfigError(
                f"{name}: two lines set it, `{before.text}` and `{after.text}`; {way_out}"
            )
    try:
        value = parameter.usable(namespace[name])
    except ConfigError as error:
        raise ConfigError(f"{error}, in the line `{line.text}`") from None
    if line.literal is not cells.NO_LITERAL and parameter.usable(line.literal) != value:
        raise ConfigError(
            f"{name}: the line `{line.text}` is not what the kernel holds, {value!r}; run the "
            "cells again from the top"
        )
    return value


def _allowed(error: ValidationError) -> str:
    first = error.errors()[0]
    if "expected" in (context := first.get("ctx", {})):
        return "choose one of " + context["expected"].replace("'", "").replace(" or ", ", ")
    return str(context.get("error", first["msg"]))


def _namespace() -> dict[str, Any]:
    """The variables of the notebook or script that called this module."""
    frame = sys._getframe(1)
    while frame.f_globals is globals():
        frame = frame.f_back
    return frame.f_globals


def _show_figures() -> None:
    """Show figures inline and sharp in a kernel, even if a container or CI sets MPLBACKEND=Agg."""
    from IPython import get_ipython

    shell, backend = get_ipython(), os.environ.get("MPLBACKEND", INLINE)
    if not hasattr(shell, "kernel"):
        return
    shell.config.InlineBackend.figure_formats = {"retina"}
    if backend == INLINE:
        return
    os.environ["MPLBACKEND"] = INLINE
    if "matplotlib" in sys.modules:  # has already read the variable
        shell.run_line_magic("matplotlib", "inline")
