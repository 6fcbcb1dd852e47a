"""Where the checkout lies that this package is imported from, if it is not installed."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def from_root(path: Path) -> str:
    """A path as it reads from the checkout's root; elsewhere as it is."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)
