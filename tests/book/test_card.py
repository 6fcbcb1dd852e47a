"""The printed card for a room without a network: its lines run, in their order.

What needs a network or a person is played: `pip` and `jupyter` only say what they were asked, and
the environment that `python3 -m venv` would make is the one of this test. All else is real.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CARD = ROOT / "book" / "_static" / "card.sh"
PLAYED = """
pip() { echo "pip $*" >> asked; }
jupyter() { echo "jupyter $*" >> asked; test -d "$2"; }
iekd() { "$PYTHON" -c 'from iekd.cli.main import main; raise SystemExit(main())' "$@"; }
python3() { echo "python3 $*" >> asked; mkdir -p iekd-env/bin; : > iekd-env/bin/activate; }
"""

pytestmark = pytest.mark.skipif(not (shutil.which("bash") and shutil.which("git")), reason="bash")


def test_the_card_runs_from_the_first_line_to_the_last(tmp_path):
    (tmp_path / "home").mkdir()
    subprocess.run(["git", "init", "-q", tmp_path / "home"], check=True)
    quiet = {name: value for name, value in os.environ.items() if not name.startswith("IEKD_")}
    environment = {**quiet, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    script = f"set -e\n{PLAYED}\n{CARD.read_text(encoding='utf-8')}"
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path / "home",
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    room = tmp_path / "home"
    assert (room / "lesson" / "factor.ipynb").is_file() and (room / "results.tar").is_file()
    records = list((room / "runs" / "records" / "smoke").rglob("seed*.json"))
    assert {"kd", "ft", "ie-ft"} <= {record.parent.name for record in records}
    asked = (room / "asked").read_text().splitlines()
    assert [line.split()[0] for line in asked] == ["pip", "python3", "pip", "jupyter"]
    assert "--no-index --find-links stick/wheels" in asked[2]


def test_the_card_fits_on_a_page():
    lines = CARD.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 50 and max(map(len, lines)) <= 110
    assert not [line for line in lines if re.search(r"\bsudo\b|https?://", line)]
