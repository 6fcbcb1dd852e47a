"""The location of the checkout from which this package is imported, if it is not installed."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def from_root(path: Path) -> str:
    """A path relative to the checkout's root; outside it, the path itself."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)
