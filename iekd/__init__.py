"""IE-KD: knowledge distillation by inheritance and exploration.

    import iekd

    mine = iekd.config("smoke", method="ie-ft", explore="cka")
    record = iekd.train(mine)
    runs = iekd.compare({"FT": mine.replace(method="ft"), "IE-FT": mine}, seeds=range(3))
    iekd.table(runs, baseline="FT")

One primitive: `train(config)` loads the finished record of a run, or resumes it, or trains it.
"""

import importlib
import importlib.util
import inspect
import sys
from types import ModuleType
from typing import Any

__version__ = "0.2.0"

# The front door: each public name with the module that defines it. They are imported on first use,
# because importing torch takes seconds.
_DOOR = dict.fromkeys(("ConfigError", "DataError", "StoreError", "TrainingError"), "errors")
_DOOR |= {"RunConfig": "config.run", "train": "training.runner"}
_DOOR |= dict.fromkeys(("load_student", "compare", "table", "plot"), "front")
_DOOR |= {"measure": "config.known", "check_measure": "method.check"}
_DOOR |= {"unit": "method.measures", "Batch": "method.features"}
# Two rooms are named after what they do: `iekd.config(...)` makes a configuration,
# `@iekd.method(...)` registers a method, and `iekd.config.grid`, `iekd.method.measures` are
# modules.
_CALLED = {"config": ("config.run", "RunConfig.create"), "method": ("config.known", "method")}

__all__ = [*_DOOR, *_CALLED, "__version__"]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name in _CALLED:
        return importlib.import_module(f"iekd.{name}")
    if name not in _DOOR:
        return _enter("iekd", name)
    value = getattr(importlib.import_module(f"iekd.{_DOOR[name]}"), name)
    globals()[name] = value
    return value


def _enter(room: str, name: str) -> ModuleType:
    """A module of a room, imported on first use: `iekd.report.figures`."""
    if name.startswith("_") or not importlib.util.find_spec(f"{room}.{name}"):
        raise AttributeError(f"module {room!r} has no attribute {name!r}")
    return importlib.import_module(f"{room}.{name}")


class _Room(ModuleType):
    """A package whose modules are imported on first use; two of them can be called."""

    def __getattr__(self, name: str) -> ModuleType:
        return _enter(self.__name__, name)


def _function_of(room: str) -> Any:
    """What a package does when it is called."""
    module, path = _CALLED[room.partition(".")[2]]
    function: Any = importlib.import_module(f"iekd.{module}")
    for part in path.split("."):
        function = getattr(function, part)
    return function


# A callable package; `help` shows how to call it. (No docstring here: each instance has its own.)
class _CalledRoom(_Room):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _function_of(self.__name__)(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(_function_of(self.__name__))

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        how = inspect.getdoc(_function_of(self.__name__))
        return f"{self.__name__}{self.__signature__}\n\n{how}\n\n{self.__dict__['__doc__']}"


class _House(ModuleType):
    """This package. The import system sets each imported room on it, which opens the room."""

    def __setattr__(self, name: str, value: Any) -> None:
        if type(value) is ModuleType and hasattr(value, "__path__"):
            value.__class__ = _Room
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _House


def _open(room: str) -> None:
    """Make a package callable; its `__init__` calls this."""
    sys.modules[room].__class__ = _CalledRoom
