"""What a run sees of a data set: whole splits as tensors, wherever their pixels come from."""

from iekd.data.dataset import FACTS, DataSet, Facts, Split, image_count, image_shape, load
from iekd.data.sources import Row, describe, load_raw, pack
from iekd.errors import DataError

__all__ = [
    "FACTS",
    "DataError",
    "DataSet",
    "Facts",
    "Row",
    "Split",
    "describe",
    "image_count",
    "image_shape",
    "load",
    "load_raw",
    "pack",
]
