"""The folders in which data sets are looked for, in this order.

A data root named by the user (an argument, else the variable IEKD_DATA); the default folder;
Debian's folder for data packages.
"""

import os
from pathlib import Path

from iekd.checkout import ROOT
from iekd.errors import DataError

DEBIAN = Path("/usr/share/datasets")


def default_folder() -> Path:
    """`data/` of a checkout, ~/.cache/iekd for an installed package."""
    is_checkout = (ROOT / "pyproject.toml").exists()
    return ROOT / "data" if is_checkout else Path.home() / ".cache" / "iekd"


def named_root(root: Path | None) -> Path | None:
    """The data root named by the user, absolute. Raises `DataError` if it does not exist."""
    named = root or os.environ.get("IEKD_DATA")
    if not named:
        return None
    folder = Path(named).expanduser().resolve()
    if not folder.is_dir():
        origin = "the data root" if root else "IEKD_DATA"
        raise DataError(
            f"{folder}: {origin} is not a folder. Name the folder that holds the data, or none."
        )
    return folder


def roots(named: Path | None) -> list[Path]:
    """Every root, the named one (absolute) first."""
    return [*([named] if named else []), default_folder(), DEBIAN]
