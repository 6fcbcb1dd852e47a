"""A window on a borrowed machine, played on this one: what comes home is small, and its records
come first.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny import SMALL, tiny

from iekd import records
from iekd.records import transfer

ROOT = Path(__file__).parents[2]
SCRIPT = "runs/gpu/drive.sh"
# python3 of that machine: nothing to install here, no GPU to test or to measure.
PYTHON = f"""#!/bin/sh
case "$*" in
  *"-m pip "*) ;;
  *"-m pytest "*) echo "tests see $CUDA_VISIBLE_DEVICES"; exit 1 ;;
  *"iekd bench "*) mkdir -p "$IEKD_RUNS/bench"; echo "{{}}" > "$IEKD_RUNS/bench/nvidia-abacus.json" ;;
  *) exec {sys.executable} "$@" ;;
esac
"""


@pytest.fixture
def machine(tmp_path):
    """A checkout that has travelled, with what came along, and a grid of two runs."""
    there = tmp_path / "there"
    for folder in ("runs/gpu", "runs/records", "bin", ".gpu/data-1"):
        (there / folder).mkdir(parents=True)
    (there / "iekd").symlink_to(ROOT / "iekd")
    (there / SCRIPT).write_bytes((ROOT / SCRIPT).read_bytes())
    (there / "bin/python3").write_text(PYTHON)
    (there / "bin/python3").chmod(0o755)
    (there / ".gpu/results.tar").write_text("damaged on the way")
    small = {
        name: value for name, value in SMALL.items() if name != "ae_epochs"
    }  # neither of the two methods has an auto-encoder
    (there / "grid.yaml").write_text(
        yaml.safe_dump(
            {"base": {"preset": "smoke", **small}, "runs": [{"method": ["supervised", "kd"]}]}
        )
    )
    return there


def drive(machine: Path, *arguments: str) -> subprocess.CompletedProcess:
    """The script on a fresh machine, whose own folder is named after where the results go."""
    work = str(machine / "-".join(("work", *arguments[1:])))
    own = {
        "PATH": f"{machine / 'bin'}:{os.environ['PATH']}",
        "GRIDS": "grid.yaml",
        "IEKD_WORK": work,
    }
    environment = {
        name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"
    } | own
    command = ["bash", str(machine / SCRIPT), *arguments]
    return subprocess.run(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def test_a_window_brings_its_records_home_whatever_else_fails(machine):
    done = drive(machine, "600", "out")
    assert done.returncode == 0, done.stdout
    assert "results.tar was not taken in" in done.stdout
    assert (
        "tests see 0\ndrive.sh: tests on the GPU: status 1" in done.stdout
        and "benchmark: status 0" in done.stdout
    )
    home = sorted(path.name for path in (machine / "out").iterdir())
    assert home == ["log.txt", "nvidia-abacus.json", "records.tar.aa", "weights.tar.aa"]
    assert done.stdout in (machine / "out/log.txt").read_text()
    transfer.merge(machine / "out/records.tar.aa")  # the other archive was lost
    assert all(records.find(config) for config in (tiny(), tiny("kd"), tiny("kd").teacher_run()))
    assert not records.weights_at_hand(tiny())

    (machine / "runs/bench").mkdir()
    (machine / "out/nvidia-abacus.json").rename(machine / "runs/bench/nvidia-abacus.json")
    (machine / "out/records.tar.aa").rename(machine / ".gpu/results.tar")
    again = drive(machine, "600", "again")
    assert (
        again.returncode == 0
        and "tests see" not in again.stdout
        and again.stdout.count("\nloaded") == 3
    ), again.stdout


def test_without_arguments_it_says_how_it_is_used(machine):
    done = drive(machine)
    assert (
        done.returncode == 2
        and "runs/gpu/drive.sh SECONDS OUT" in done.stdout
        and "unbound" not in done.stdout
    )
