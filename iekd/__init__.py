"""IE-KD: knowledge distillation by inheritance and exploration.

    import iekd

    mine = iekd.config("smoke", method="ie-ft", explore="cka")
    record = iekd.train(mine)
    runs = iekd.compare({"FT": mine.replace(method="ft"), "IE-FT": mine}, seeds=range(3))
    iekd.table(runs, baseline="FT")

One primitive: `train(config)` loads the finished record of a run, or resumes it, or trains it.
"""

import importlib
import sys
from types import ModuleType
from typing import Any

__version__ = "0.2.0"

# The front door, by the module where each name lives. They are imported on first use: torch takes
# seconds.
_DOOR = dict.fromkeys(("ConfigError", "DataError", "StoreError", "TrainingError"), "errors")
_DOOR |= {"RunConfig": "config.run", "train": "training.runner"}
_DOOR |= dict.fromkeys(("load_student", "compare", "table", "plot"), "front")
_DOOR |= {"measure": "config.known", "check_measure": "method.check"}
_DOOR |= {"unit": "method.measures", "Batch": "method.features"}
# Two rooms bear the name of what is done there: `iekd.config(...)` makes a configuration,
# `@iekd.method(...)` registers a method, and `iekd.config.grid`, `iekd.method.measures` are
# modules.
_CALLED = {"config": ("config.run", "RunConfig.create"), "method": ("config.known", "method")}

__all__ = [*_DOOR, *_CALLED, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _CALLED:
        return importlib.import_module(f"iekd.{name}")
    if name not in _DOOR:
        raise AttributeError(f"module 'iekd' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"iekd.{_DOOR[name]}"), name)
    globals()[name] = value
    return value


class _Room(ModuleType):
    """A package that can be called."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module, path = _CALLED[self.__name__.partition(".")[2]]
        function: Any = importlib.import_module(f"iekd.{module}")
        for part in path.split("."):
            function = getattr(function, part)
        return function(*args, **kwargs)


def _open(room: str) -> None:
    """Make a package callable; its `__init__` asks for it."""
    sys.modules[room].__class__ = _Room
