"""Which lines of a notebook set which names, read from the cells that ran before its parameter
check.

The cells are those of the kernel's history, of the notebook that `%run` executes, or of a script
made from one.
"""

import ast
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

CHECKS = ("parameters", "given", "run_config")  # of iekd.notebook
INJECTED = "# Parameters"  # the first line of the cell that papermill injects
# Where a cell begins in a script that nbconvert or jupytext made.
BORDER = re.compile(r"^# (?:In\[.*\]:|%%.*|\+(?: .*)?)$|^(?=# Parameters$)", re.MULTILINE)
BLOCKS = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda
SCOPES = BLOCKS | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
NO_LITERAL = object()


class Line(NamedTuple):
    """A statement that sets names: its first line, its value if that is a literal, and whether
    papermill wrote it.
    """

    names: tuple[str, ...]
    text: str
    literal: Any
    injected: bool


class Cell(NamedTuple):
    """The lines of a cell that set names, up to the parameter check if it has one."""

    lines: list[Line]
    checks: bool

    @property
    def names(self) -> set[str]:
        return {name for line in self.lines for name in line.names}


def executed(namespace: dict[str, Any]) -> list[str]:
    """The sources of a namespace's cells, oldest first; none if they cannot be found."""
    history, file = list(namespace.get("In", ())), namespace.get("__file__")
    # else the caller runs under `%run`, whose cells are not in the history
    if not file or (history and read(history[-1]).checks):
        return history
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return []
    if not file.endswith(".ipynb"):
        return BORDER.split(text)
    code = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    return ["".join(cell["source"]) for cell in code]


def before_check(sources: Sequence[str], declared: set[str]) -> list[Line]:
    """The lines that set names, from the latest parameters cell to the check that follows it.

    The parameters cell is the one that sets at least half of the `declared` names. Until the first
    check, the other cells before it count too, but not earlier versions of a parameters cell that
    was edited and run again.
    """
    cells = [read(source) for source in sources]
    known = [2 * len(declared & cell.names) >= len(declared) for cell in cells]
    holders = [i for i, source in enumerate(sources) if known[i] and not is_injected(source)] or [0]
    checks = [i for i, cell in enumerate(cells) if cell.checks]
    start, end = holders[-1], len(cells) - 1
    end = next((i for i in checks if i >= start), end)
    fresh = not any(i < start for i in checks)
    places = [i for i in range(end + 1) if i >= start or (fresh and i not in holders)]
    return [line for i in places for line in cells[i].lines]


def is_injected(source: str) -> bool:
    """Whether papermill wrote this cell."""
    return source.lstrip().startswith(INJECTED)


def read(source: str) -> Cell:
    """The lines of a cell that set names."""
    lines = []
    for statement, text in _statements(source):
        if any(map(_checks, ast.walk(statement))):
            return Cell(lines, True)
        if names := tuple(dict.fromkeys(_stored(statement))):
            lines.append(Line(names, text, _literal(statement), is_injected(source)))
    return Cell(lines, False)


def _statements(source: str) -> Iterator[tuple[ast.stmt, str]]:
    """The statements of a cell, also under a cell magic (`%%time`), with their first lines."""
    from IPython.core.inputtransformer2 import TransformerManager

    try:
        python = TransformerManager().transform_cell(source)
        body = ast.parse(python).body
    except SyntaxError:  # not Python
        return
    texts = python.splitlines()
    for statement in body:
        match statement.value if isinstance(statement, ast.Expr) else None:
            case ast.Call(ast.Attribute(attr="run_cell_magic"), [_, _, ast.Constant(str(inner))]):
                yield from _statements(inner)
            case _:
                yield statement, texts[statement.lineno - 1].strip()


def _checks(node: ast.AST) -> bool:
    """Whether this is a call of `notebook.parameters` or the like, with names of the page."""
    match node:
        case ast.Call(ast.Name(name) | ast.Attribute(attr=name), [_, *_]):
            return name in CHECKS
    return False


def _stored(node: ast.AST) -> Iterator[str]:
    """The names that a statement sets, in this scope."""
    if isinstance(node, SCOPES) or (isinstance(node, ast.AnnAssign) and node.value is None):
        return  # `seed: int` alone sets nothing
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    for child in ast.iter_child_nodes(node):
        yield from _stored(child)


def _literal(statement: ast.stmt) -> Any:
    match statement:
        case ast.Assign([ast.Name()], value) | ast.AnnAssign(ast.Name(), _, value):
            try:
                return ast.literal_eval(value)
            except ValueError:
                pass
    return NO_LITERAL
