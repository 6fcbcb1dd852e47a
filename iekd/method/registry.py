"""Methods and measures by name: one row each, declared with its code, in this library or in a
reader's own file or cell.

    @iekd.measure("huber", unit="l1")
    def huber(student, teacher): ...

    @iekd.method("gap", taught="teacher", reads="pooled")
    class Gap(nn.Module):
        def __init__(self, networks, *, gap_weight: float = 1.0): ...

From then on, configuration, training, tables, figures and analysis know the name. `config.known`
imports the modules that register something.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_type_hints

from iekd.errors import ConfigError

if TYPE_CHECKING:  # checking a configuration is instant; importing torch takes seconds
    from torch import Tensor, nn

    from iekd.method.features import Pair, Shapes

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")  # used in paths
OPTION_TYPES = (int, float, str)

# The fields of a run that come with what teaches the student.
TEACHER = ("teacher_epochs", "teacher_lr", "teachers", "teacher_file")
FACTOR = ("factor_ratio", "ae_epochs", "ae_lr", "reconstruction", "decoder")
TAUGHT = {"": (), "teacher": TEACHER, "factor": (*TEACHER, *FACTOR), "peer": ("place",)}
READS = ("", "factor", "pooled", "last", "stages", "stages_pre")
UNITS, SIDES = ("l1", "one"), ("inherit", "explore")


class Networks(NamedTuple):
    """What a method is built for: the networks at their initial values, and the pairs of stages
    that it compares.

    A network is one of `iekd.networks`, or None where there is none; `teacher` is the peer in
    mutual learning. `labels`: the classes of all training images, for a method with a memory.
    """

    student: Any
    teacher: Any
    autoencoder: Any
    labels: Tensor | None
    pairs: list[Pair]


@dataclass(frozen=True, eq=False)
class Method:
    """A row of the registry; see `method`."""

    name: str
    kind: type[nn.Module]
    label: str
    source: str
    taught: Literal["", "teacher", "factor", "peer"]
    fields: tuple[str, ...]
    compares: Callable[[Shapes, Shapes], list[Pair]] | None
    reads: str
    build: Callable[[Any, Networks], nn.Module]
    options: Mapping[str, inspect.Parameter] = field(default_factory=dict)
    whole_batch: bool = False
    detects: bool = False

    def needs(self, pairs: list[Pair], teacher: Shapes) -> list[str]:
        """The teacher's features that the method reads besides the logits."""
        match self.reads:
            case "":
                return []
            case "stages":
                return [pair.teacher for pair in pairs]
            case "stages_pre":
                return [f"{pair.teacher}_pre" for pair in pairs]
            case "last":
                return [name for name in teacher if name.startswith("stage")][-1:]
        return [self.reads]

    def complete(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All options with their values. Raises `ValueError` for one that is not declared or has
        another type.
        """
        if unknown := [name for name in given if name not in self.options]:
            declared = ", ".join(self.options) or "none"
            raise ValueError(
                f"options: {self.name} has no {unknown[0]!r}; its parameters are: {declared}"
            )
        return {
            name: _typed(option, given.get(name, option.default))
            for name, option in self.options.items()
        }


def _typed(option: inspect.Parameter, value: Any) -> int | float | str:
    try:
        typed = option.annotation(value)
        if isinstance(value, bool) or (option.annotation is int and typed != float(value)):
            raise ValueError
        return typed
    except (TypeError, ValueError):
        kind = {int: "a whole number", float: "a number", str: "a text"}[option.annotation]
        raise ValueError(f"{option.name}: {value!r} is not usable; it is {kind}") from None


METHODS: dict[str, Method] = {}


def method(
    name: str,
    *,
    label: str = "",
    source: str = "",
    taught: Literal["", "teacher", "factor", "peer"] = "",
    fields: tuple[str, ...] = (),
    compares: Callable[[Shapes, Shapes], list[Pair]] | None = None,
    reads: str = "",
    whole_batch: bool = False,
    detects: bool = False,
    build: Callable[[Any, Networks], nn.Module] | None = None,
) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Register a class as the method of this name. It needs `forward(batch, student, teacher) ->
    {term: loss}`.

    `batch.goal(student)` is the task loss, `batch.labels` (B,) are the classes. `student` and
    `teacher` are outputs of networks: `logits` (B, classes), always present; `feature`
    (B, C, H, W), the last map; and `features`, by name: 'stage1', ... ('stage1_pre' before its
    ReLU), 'pooled' (B, C), and 'factor' for a teacher with an auto-encoder.

    Args:
        name: lower-case letters, digits and hyphens; used in the paths of records.
        label: what tables and figures call it; default: the name in capitals.
        source: what it does and where it comes from, one sentence.
        taught: by nobody (''), a trained 'teacher', its 'factor' as well, or a 'peer' (mutual
            learning).
        fields: further fields of a run that it reads.
        compares: which stages of student and teacher must have equal height and width, for
            example `features.last`.
        reads: the teacher's features that it reads besides the logits: 'factor', 'pooled', 'last',
            'stages', 'stages_pre', or '' for none.
        whole_batch: whether its loss is not a mean over the images of a batch (it relates them to
            one another, or keeps a memory): processes with a shard each cannot train it.
        detects: whether it also trains detectors: it takes the task loss from
            `batch.goal(student)`, and reads neither class scores nor 'pooled'.
        build: builds it from a run's configuration and `Networks`. Default:
            `cls(networks, **options)`, where the options are the keyword parameters of its
            constructor, each with a type (int, float, str) and a default.

    Raises:
        ConfigError: the name or a word cannot be used, or a parameter cannot be an option.
    """
    _check_word("taught", taught, TAUGHT)
    _check_word("reads", reads, READS)

    def register(kind: type[nn.Module]) -> type[nn.Module]:
        _check_name(name, METHODS, kind)
        options = {} if build else _options(kind)
        row = Method(
            name,
            kind,
            label or name.upper(),
            source,
            taught,
            (*TAUGHT[taught], *fields),
            compares,
            reads,
            build or (lambda run, networks: _checked(kind(networks, **run.options))),
            options,
            whole_batch or taught == "peer",
            detects,
        )
        METHODS[name] = row
        return kind

    return register


def _options(kind: type[nn.Module]) -> dict[str, inspect.Parameter]:
    """The keyword parameters of a method's constructor, which are parameters of a run."""
    hints, found = get_type_hints(kind.__init__), {}
    parameters = inspect.signature(kind).parameters.values()
    if all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in parameters):
        raise ConfigError(
            f"{kind.__name__}: it is made for the networks of a run, which its constructor takes: "
            "def __init__(self, networks, *, weight: float = 1.0)"
        )
    for parameter in parameters:
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        if hints.get(parameter.name) not in OPTION_TYPES or parameter.default is parameter.empty:
            raise ConfigError(
                f"{kind.__name__}: {parameter.name} is a parameter of runs, so it needs a type "
                "(int, float or str) "
                f"and a default, for example `{parameter.name}: float = 1.0`"
            )
        found[parameter.name] = parameter.replace(annotation=hints[parameter.name])
    return found


def _checked(made: nn.Module) -> nn.Module:
    """A reader's method that raises an error if it does not return loss terms by name."""
    made.register_forward_hook(_check_terms)
    return made


def _check_terms(made: nn.Module, _: Any, terms: Any) -> None:
    if not isinstance(terms, dict) or any(getattr(term, "shape", 0) for term in terms.values()):
        raise ConfigError(
            f"{type(made).__name__}.forward: it returns the terms of the loss by name, each one "
            "number: {'task': batch.goal(student), 'mine': ...}"
        )


# ---------------------------------------------------------------------- measures


Measure = Callable[["Tensor", "Tensor"], "Tensor"]


class MeasureRow(NamedTuple):
    """A row of the registry; see `measure`."""

    function: Measure
    label: str
    unit: str = "l1"
    similarity: bool = False
    sides: tuple[str, ...] = SIDES
    whole_batch: bool = False


MEASURES: dict[str, MeasureRow] = {}
INHERIT: dict[str, Measure] = {}  # the losses that training minimises, with sign and in L1 units
EXPLORE: dict[str, Measure] = {}


def measure(
    name: str,
    *,
    label: str = "",
    unit: Literal["l1", "one"] = "l1",
    similarity: bool = False,
    sides: tuple[str, ...] = ("inherit", "explore"),
    whole_batch: bool = False,
) -> Callable[[Measure], Measure]:
    """Register a function of two factors (B, C, H, W) as the measure of this name. It returns a
    scalar.

    Inheritance minimises a distance, exploration its negative. A measure that is small for factors
    that differ is a `similarity`: exploration minimises it, and inheritance cannot use it.

    Args:
        name: lower-case letters, digits and hyphens; used in the paths of records.
        label: what tables and figures call it; default: the name.
        unit: 'l1' for a value that falls with the size of the factors, N = C*H*W, like the mean L1
            between unit factors, 1/sqrt(N); 'one' for a value that does not, such as a cosine or
            an angle: its loss is then multiplied by `l1_unit`, 1.13/sqrt(N), so that one weight
            pushes about equally hard with every measure.
        similarity: whether it is large for factors that are alike.
        sides: the halves that may use it.
        whole_batch: whether it is not a mean over the images of a batch, but relates them to one
            another: processes with a shard each cannot train with it.

    Raises:
        ConfigError: the name or a word cannot be used.
    """
    _check_word("unit", unit, UNITS)
    for side in sides:
        _check_word("sides", side, SIDES)

    def register(function: Measure) -> Measure:
        _check_name(name, MEASURES, function)
        about = unit, similarity, tuple(sides), whole_batch
        MEASURES[name] = MeasureRow(function, label or name, *about)
        if "inherit" in sides and not similarity:
            INHERIT[name] = _loss(function, +1, unit == "one")
        if "explore" in sides:
            EXPLORE[name] = _loss(function, +1 if similarity else -1, unit == "one")
        return function

    return register


def l1_unit(factor: Tensor) -> float:
    """Mean L1 between independent, centred unit factors of this size: 2/sqrt(pi N), N = C*H*W."""
    return 2 / math.sqrt(math.pi * factor[0].numel())


def _loss(measure: Measure, sign: int, dimensionless: bool = False) -> Measure:
    """The measure with a fixed teacher, a sign, and in L1 units."""

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        return (
            sign * (l1_unit(student) if dimensionless else 1) * measure(student, teacher.detach())
        )

    return loss


# ---------------------------------------------------------------------- names


def _check_name(name: str, table: Mapping[str, Any], thing: Callable) -> None:
    """Refuse names that cannot be in a path, and this library's own; a cell that is run again may
    replace its own.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot name this: use small letters, digits and hyphens, as in 'my-loss'"
        )
    row = table.get(name)
    before = getattr(row, "kind", None) or getattr(row, "function", None)
    if name == "none" or (before is not None and is_ours(before) != is_ours(thing)):
        raise ConfigError(
            f"{name!r} is a name of this library; choose another one, for example 'my-{name}'"
        )


def _check_word(argument: str, word: str, known: Iterable[str]) -> None:
    if word not in known:
        listed = ", ".join(map(repr, known))
        raise ConfigError(f"{argument}: {word!r} is not usable; choose one of {listed}")


def is_ours(thing: Callable) -> bool:
    """Whether this library registered it, rather than a reader."""
    return thing.__module__.partition(".")[0] == "iekd"
