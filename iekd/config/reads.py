"""Which fields of a run its method reads; a field that was named but is not read is refused."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from iekd.config import known
from iekd.errors import ConfigError
from iekd.method import registry

if TYPE_CHECKING:
    from iekd.config.run import RunConfig

# The fields of a teacher that is trained here.
TRAINED_TEACHER = ("teacher_epochs", "teacher_lr", "teachers")


def fields_of(method: str) -> tuple[str, ...]:
    """The fields that a method reads and others do not; none if its code is not known here."""
    row = known.methods().get(method)
    return row.fields if row else ()


def options_of(method: Any) -> set[str]:
    """The parameters of a reader's own method."""
    row = known.methods().get(method) if isinstance(method, str) else None
    return set(row.options) if row else set()


@functools.cache
def _some_read() -> frozenset[str]:
    """The fields that some methods of this library read, and others do not."""
    ours = [row for row in known.methods().values() if registry.is_ours(row.kind)]
    return frozenset(name for row in ours for name in row.fields)


def unread_by(method: str) -> set[str]:
    """The fields that no run of a method reads."""
    if method not in known.methods():  # they were at their defaults when it was recorded
        return set()
    own = fields_of(method)
    unread = set(_some_read() - set(own))
    if not {"teacher_epochs", "place"} & set(own):  # neither a teacher nor a peer
        unread |= {"teacher"}
    return unread | ({"student"} if method == "factor-ae" else set())


def refuse_unread(names: Iterable[str], configs: Sequence[RunConfig]) -> None:
    """Raise `ConfigError` for every named field that none of these runs reads.

    Whoever names a field expects it to change something.
    """
    unread = set.intersection(*(config.unread() | config.ignored() for config in configs))
    methods = list(dict.fromkeys(config.method for config in configs))
    if idle := [name for name in names if name in unread]:
        raise ConfigError("\n".join(f"{name}: {_why_unread(name, methods)}" for name in idle))


def _why_unread(name: str, methods: list[str]) -> str:
    readers = [method for method in known.methods() if name not in unread_by(method)]
    if set(methods) & set(readers):
        where = "where the measure of that half is none"
        if name in TRAINED_TEACHER:
            where = "where teacher_file names a trained teacher"
        return f"{' and '.join(methods)} does not read it {where}"
    verb = "does" if len(methods) == 1 else "do"
    return f"{', '.join(methods)} {verb} not read it; methods that do: {', '.join(readers)}"
