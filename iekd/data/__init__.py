"""What a run sees of a data set: whole splits as tensors, wherever their pixels come from."""

import importlib
from typing import Any

from iekd.data.facts import (
    FACTS,
    NAMES,
    STREAMED,
    Facts,
    has_boxes,
    image_count,
    image_shape,
    is_own,
)
from iekd.errors import DataError

# Imported on first use: they import torch, which takes seconds.
_LATER = dict.fromkeys(("DataSet", "Split", "load"), "dataset")
_LATER |= dict.fromkeys(("Row", "describe", "load_raw", "pack"), "sources")


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
