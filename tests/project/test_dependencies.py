"""An installation without the extras trains: what the book and the developers need is not imported."""

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

# As if what is installed only for an extra were not.
BLOCKED = """
import sys
sys.modules.update(dict.fromkeys({names!r}))
from iekd.cli.main import main
for command in {commands!r}:
    print(">", command, flush=True)
    try:
        status = main(command.split())
    except SystemExit as end:  # --help
        status = end.code
    if status:
        sys.exit(status)
"""


def needed(package: str, seen: set[str]) -> set[str]:
    """A package and all that it requires without extras, by normalised name."""
    name = re.sub(r"[-_.]+", "-", package).lower()
    if name not in seen:
        seen.add(name)
        try:
            lines = requires(name) or []
        except PackageNotFoundError:
            lines = []
        for line in lines:
            if "extra ==" not in line:
                needed(re.match(r"[\w.-]+", line)[0], seen)
    return seen


def of_extras() -> set[str]:
    """Top-level modules of which no distribution is needed by iekd itself."""
    core = needed("iekd", set())
    found = set()
    for module, owners in packages_distributions().items():
        if not {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners} & core:
            found.add(module)
    return found - {
        "_pytest",
        "pytest",
        "sphinx",
    }  # pytest runs this; some look for Sphinx by its name


COMMANDS = [
    "--help",
    "doctor",
    "table",
    "run --preset smoke --epochs 1 --method supervised",
    "sweep --preset smoke --method kd --epochs 1 --seed 0 --dry-run",
]


def test_commands_need_no_package_of_an_extra(runs):
    """All in one process: none may have loaded what another needs, for it cannot be had."""
    names = of_extras()
    assert {"nbformat", "papermill", "IPython"} <= names and "torch" not in names
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED.format(names=names, commands=COMMANDS)],
        capture_output=True,
        text=True,
    )
    assert "No module named" not in done.stderr, done.stderr
    assert done.returncode == 0, done.stdout + done.stderr


def test_handouts_say_what_they_need(tmp_path):
    code = BLOCKED.format(names={"nbformat"}, commands=[f"handout {tmp_path / 'lesson'}"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "pip install -e '.[book]'" in done.stderr
