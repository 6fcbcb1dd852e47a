"""A reader's own methods and measures, from Python files that a grid or a command names."""

import os
from collections.abc import Iterable
from pathlib import Path

from iekd.method import registry


def import_files(files: Iterable[str | Path], beside: Path = Path()) -> None:
    """Import files here, and in every process that is started from here.

    They are also put into $IEKD_IMPORT, as absolute paths, which `registry.load` reads. `beside`:
    the folder that relative paths start from. Raises `ConfigError` for a file that cannot be
    imported.
    """
    registry.load()
    known = [name for name in os.environ.get("IEKD_IMPORT", "").split(os.pathsep) if name]
    for file in files:
        path = str((beside / Path(str(file)).expanduser()).resolve())
        registry.import_file(path)
        if path not in known:
            known.append(path)
    os.environ["IEKD_IMPORT"] = os.pathsep.join(known)
