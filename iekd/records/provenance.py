"""Where a record comes from: commit, versions and machine."""

import functools
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from iekd import __version__

PACKAGE = Path(__file__).parents[1] / "__init__.py"


@functools.cache
def provenance() -> dict[str, Any]:
    """Commit, versions and machine, as far as they are known."""
    # Imported here: it takes a second, and only training needs it.
    import torchvision

    cuda = torch.cuda.is_available()
    return {
        "git": commit_of(PACKAGE),
        "versions": {
            "iekd": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
        "device": {
            "name": torch.cuda.get_device_name() if cuda else _processor(),
            "type": "cuda" if cuda else "cpu",
            "threads": torch.get_num_threads(),
        },
    }


def commit_of(source: Path) -> dict[str, Any]:
    """The commit of the repository that tracks a file, and whether the file's folder differs.

    A repository that contains but does not track the file (an environment inside another project)
    says nothing about it: the values are then None, as they are without git.
    """
    # A git hook sets variables that point to another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*words: str) -> str:
        command = ["git", "-C", str(source.parent), *words]
        return subprocess.check_output(
            command, env=environment, stderr=subprocess.DEVNULL, text=True
        ).strip()

    try:
        git("ls-files", "--error-unmatch", "--", source.name)
        changes = git("status", "--porcelain", "--untracked-files=no", "--", ".")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changes)}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
