"""A digest of the code that computes a run's loss, so that an edited loss is noticed.

It reads the method's class, the run's measures, and whatever they use from this library, as syntax
trees: docstrings, comments, annotations and layout do not count, nor does the module that a name
comes from, nor the bodies of exceptions. So reformatting or moving a file does not change the
digest, and every change to the arithmetic does.
"""

import ast
import hashlib
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType, ModuleType
from typing import Any

from iekd import data
from iekd.config import RunConfig, methods
from iekd.errors import ConfigError
from iekd.method import detection, registry
from iekd.records import Record

PLAIN = (bool, int, float, str)  # constants whose value is code


def of(config: RunConfig, exceptions: bool = False) -> str | None:
    """Twelve hexadecimal digits for the loss of a run; None where its source cannot be read, or
    its method or measures are not known here.

    `exceptions`: with the bodies of exceptions, which the digests of older records hold.
    """
    try:
        losses: list[Callable] = [methods.registered(config).kind]
    except ConfigError:
        return None
    if config.method == "ie-ft":
        tables = {"inherit": registry.INHERIT, "explore": registry.EXPLORE}
        for side, table in tables.items():
            name = getattr(config, side)
            if name != "none":
                losses += [table[name], registry.MEASURES[name].function]
    if data.has_boxes(config.dataset):
        losses.append(detection.ssd_loss)
    return digest(*losses, exceptions=exceptions)


def is_edited(record: Record) -> bool:
    """Whether the loss of a finished run has been edited since."""
    if record.loss_digest is None:
        return False
    now = {of(record.config), of(record.config, exceptions=True)}
    return now.isdisjoint((record.loss_digest, None))


def is_void(record: Record) -> bool:
    """Whether its record no longer counts because its loss was edited: at `smoke` scale only."""
    return record.config.preset == "smoke" and is_edited(record)


def digest(*things: Callable, exceptions: bool = False) -> str | None:
    """The digest of classes and functions, with all that they use from their own packages."""
    ours = {"iekd", *(thing.__module__.partition(".")[0] for thing in things)}
    seen: dict[int, str] = {}
    try:
        for thing in things:
            _read(thing, ours, seen, exceptions)
    except (OSError, TypeError):  # no source: code without a file
        return None
    return hashlib.sha256("\n".join(sorted(seen.values())).encode()).hexdigest()[:12]


def _read(thing: Callable, ours: set[str], seen: dict[int, str], exceptions: bool) -> None:
    """Add the normalised text of a class or function, and of everything it uses, to `seen`."""
    if id(thing) in seen or thing.__module__.partition(".")[0] not in ours:
        return
    seen[id(thing)] = ""  # it may refer to itself
    tree = _WithoutGoal().visit(ast.parse(textwrap.dedent(_source(thing))))
    if isinstance(thing, type) and issubclass(thing, BaseException) and not exceptions:
        tree.body[0].body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            node.decorator_list = [each for each in node.decorator_list if not _registers(each)]
    names = _names(thing)
    constants = {}
    for name, value in _used(tree, names):
        if isinstance(value, FunctionType | type):
            _read(value, ours, seen, exceptions)
        elif isinstance(value, PLAIN):
            constants[name] = value
    seen[id(thing)] = f"{_text(tree, names)} {sorted(constants.items())}"


class _WithoutGoal(ast.NodeTransformer):
    """Reads `batch.goal(x)` as the cross-entropy, which it is where images have one class each.

    In the losses of older records it is written out. For detectors, `of` adds the code of `goal`.
    """

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        match node:
            case ast.Call(ast.Attribute(ast.Name("batch"), "goal"), [output]):
                ce, logits = ast.Name("cross_entropy"), ast.Attribute(output, "logits")
                return ast.Call(ce, [logits, ast.Attribute(ast.Name("batch"), "labels")], [])
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        if node.name == "Batch":
            node.body = [each for each in node.body if getattr(each, "name", "") != "goal"]
        return self.generic_visit(node)


def _source(thing: Callable) -> str:
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError):
        if not isinstance(thing, type):
            raise
    # a class defined in a notebook cell has no file, but its functions do
    functions = [value for value in vars(thing).values() if isinstance(value, FunctionType)]
    return "\n".join(textwrap.dedent(inspect.getsource(function)) for function in functions)


def _names(thing: Callable) -> Mapping[str, Any]:
    """What the names in its source stand for: globals of its module, variables of its closure."""
    if isinstance(thing, type):
        return vars(sys.modules[thing.__module__])
    cells = [cell.cell_contents for cell in thing.__closure__ or ()]
    return {**thing.__globals__, **dict(zip(thing.__code__.co_freevars, cells, strict=True))}


def _used(tree: ast.AST, names: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Name and value of every global in use: `l1`, `measures.l1`, `measures.EXPLORE["l1"]`."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) if name in names:
                yield name, names[name]
            case ast.Attribute(attr=name, value=ast.Name(id=module)) if isinstance(
                names.get(module), ModuleType
            ):
                yield name, getattr(names[module], name, None)
            case ast.Subscript(value=table, slice=ast.Constant(value=key)):
                for name, value in _used(table, names):
                    if isinstance(value, dict) and key in value:
                        yield f"{name}[{key!s}]", value[key]


def _text(node: Any, names: Mapping[str, Any]) -> str:
    """A syntax tree as text, equal in all Python versions, without parts that compute nothing."""
    if isinstance(node, list):
        return f"[{' '.join(_text(each, names) for each in node)}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    match node:
        case ast.Attribute(value=ast.Name(id=module)) if isinstance(names.get(module), ModuleType):
            return f"Name(id={node.attr!r})"  # measures.l1 is l1, wherever it is defined
    fields = dict(ast.iter_fields(node))
    for silent in ("annotation", "returns", "ctx", "type_comment", "type_params", "kind"):
        fields.pop(silent, None)
    if isinstance(node, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
        fields["body"] = fields["body"][1:]
    parts = [
        f"{name}={_text(value, names)}" for name, value in fields.items() if value not in (None, [])
    ]
    return f"{type(node).__name__}({' '.join(parts)})"


def _registers(decorator: ast.expr) -> bool:
    """Whether it only registers the thing: `@method("kd", ...)`, `@iekd.measure("l1")`."""
    match decorator:
        case ast.Call(ast.Name(name) | ast.Attribute(attr=name)):
            return name in ("method", "measure")
    return False
