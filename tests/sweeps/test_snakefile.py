"""Grids by Snakemake: what it would run. (That it runs on a real SLURM is shown by
runs/slurm/try.sh, which takes root and minutes.)
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from papermill.cli import _resolve_type
from tiny import SMALL, made_up, tiny

from iekd.config import RunConfig

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("method", ["supervised", "factor-ae", "kd", "ft", "ie-ft"])
def test_what_papermill_is_given_makes_the_same_run(method):
    config = RunConfig.create(
        "class", method=method, lr=0.05, seed=3, train_images=0, explore="none", inherit_weight=500
    )
    assert (
        RunConfig.create(**{name: _resolve_type(value) for name, value in config.named().items()})
        == config
    )


@pytest.mark.parametrize("profile", ["local", "slurm"])
def test_only_missing_records_are_made_with_the_parents_that_they_need(runs, tmp_path, profile):
    if not shutil.which("snakemake", path=Path(sys.executable).parent):
        pytest.skip("Snakemake is not installed (the extra `sweeps`)")
    finished, begun, new = tiny("ie-ft"), tiny("ie-ft", seed=1), tiny("kd", seed=2)
    made_up(finished).save()  # its parents are nowhere, and stay there
    made_up(begun.autoencoder_run()).save()
    made_up(
        begun.teacher_run()
    ).save()  # younger than what came of it: no reason to make that again
    grid = tmp_path / "grid.yaml"
    grid.write_text(
        yaml.safe_dump(
            {
                "base": SMALL,
                "runs": [{"method": "ie-ft", "seed": [0, 1]}, {"method": "kd", "seed": 2}],
            }
        )
    )
    words = [
        sys.executable,
        "-m",
        "snakemake",
        "-s",
        "runs/Snakefile",
        "--profile",
        f"runs/profiles/{profile}",
        "--config",
        f"grid={grid}",
    ]
    done = subprocess.run(
        [*words, "--dry-run", "--nolock"], cwd=ROOT, capture_output=True, text=True
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    planned = {line.split("path=")[1] for line in said.splitlines() if "wildcards: path=" in line}
    assert planned == {config.path for config in (begun, new, new.teacher_run())}
