"""IE-KD: knowledge distillation by inheritance and exploration.

One primitive: `train(config)` loads the finished record of a run, or resumes it, or trains it.
"""

__version__ = "0.1.0"

from iekd.config import RunConfig
from iekd.errors import ConfigError  # noqa: E402

__all__ = ["ConfigError", "RunConfig", "StoreError", "__version__", "train"]


def __getattr__(name: str):
    """`iekd.train` and `iekd.StoreError`, imported on first use: they bring torch along, which takes seconds."""
    if name == "train":
        from iekd.training.runner import train

        return train
    if name == "StoreError":
        from iekd.errors import StoreError

        return StoreError
    raise AttributeError(f"module 'iekd' has no attribute {name!r}")
