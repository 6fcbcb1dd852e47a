"""Where the checkout lies that this package is imported from, if it is not installed."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
