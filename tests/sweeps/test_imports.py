"""A reader's own measure and method, from a file that a grid or a command names."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from tiny import SMALL, made_up

from iekd import records
from iekd.cli.main import main
from iekd.config import RunConfig, grid
from iekd.config.known import import_files
from iekd.errors import ConfigError
from iekd.method import registry
from iekd.records import store

LOSSES = '''
import torch
from torch import nn
from torch.nn import functional as F

from iekd.method.registry import measure, method


@measure("huber-like", label="Huber")
def huber(student, teacher):
    """Mean Huber distance of two factors."""
    return F.huber_loss(student, teacher)


@method("mean-gap", label="Gap", taught="teacher", reads="pooled")
class MeanGap(nn.Module):
    """The mean of the pooled features."""

    def __init__(self, networks, *, gap_weight: float = 1.0):
        super().__init__()
        self.weight = gap_weight

    def forward(self, batch, student, teacher):
        logits, features = student
        task = F.cross_entropy(logits, batch.labels)
        gap = (features["pooled"].mean(1) - teacher[1]["pooled"].mean(1)).abs().mean()
        return {"task": task, "gap": self.weight * gap}
'''
OWN = [{"method": "mean-gap", "gap_weight": [1, 3]}, {"method": "ie-ft", "explore": "huber-like"}]


@pytest.fixture
def file(tmp_path, own_losses):
    """A file of losses, known to nobody yet and to nobody afterwards."""
    path = tmp_path / "mine" / f"losses_{os.urandom(4).hex()}.py"
    path.parent.mkdir()
    path.write_text(LOSSES)
    return path


def write(file: Path, **base) -> Path:
    """A grid beside the file of losses."""
    path = file.parent / "grid.yaml"
    runs = [{**SMALL, **base, **entry} for entry in OWN]
    runs[0].pop("ae_epochs")
    content = {"import": file.name, "runs": runs}
    path.write_text(yaml.safe_dump(content))
    return path


def iekd(*words, **environment) -> subprocess.CompletedProcess:
    """The command, in a process that knows nothing of the file but what the words say."""
    command = [sys.executable, "-m", "iekd", *map(str, words)]
    own = {**os.environ, "IEKD_IMPORT": "", **environment}
    return subprocess.run(command, capture_output=True, text=True, env=own)


def test_a_grid_imports_the_file_beside_it_and_says_so_to_its_processes(file):
    configs = grid.read(write(file))
    assert [config.options for config in configs if config.method == "mean-gap"] == [
        {"gap_weight": 1.0},
        {"gap_weight": 3.0},
    ]
    assert os.environ["IEKD_IMPORT"] == str(file)
    grid.read(write(file))
    assert os.environ["IEKD_IMPORT"] == str(file)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("nowhere.py", "grid.yaml, import: .*nowhere.py: there is no such"),
        (3, "import: .*3: there"),
    ],
)
def test_a_file_that_cannot_be_imported_is_refused_with_the_grid(file, value, message):
    path = file.parent / "grid.yaml"
    path.write_text(yaml.safe_dump({"import": value, "runs": [{}]}))
    with pytest.raises(ConfigError, match=message):
        grid.read(path)
    assert os.environ["IEKD_IMPORT"] == ""


def test_a_command_of_a_run_makes_it_again(file):
    """`--gap-weight` is an option once its file is imported; the printed command names both."""
    configs = [config for config in grid.read(write(file)) if config.method == "mean-gap"]
    config = configs[1]
    assert "--gap-weight 3" in config.command()
    words = config.command().split()[1:]
    assert words[1:3] == ["--import", str(file)]
    bare = [words[0], *words[3:]]
    for command in (words, ["--import", file, *bare], [*bare, "--import", file]):
        done = iekd(*command, "--dry-run")
        assert done.returncode == 0 and f"hash {config.hash}" in done.stdout, done.stderr
    done = iekd(*bare, "--dry-run")
    assert done.returncode == 2 and "gap_weight: no such parameter" in done.stderr
    done = iekd(*words[:-2], "--gap-weight", "much", "--import", file)
    assert (
        done.returncode == 1 and "gap_weight: 'much' is not usable; it is a number" in done.stderr
    )


def test_the_printed_command_of_a_file_of_the_checkout_works_from_any_folder(
    own_losses, tmp_path, monkeypatch
):
    config = grid.read(grid.find("mirror/grid.yaml"))[0]
    assert "--import runs/mirror/mirror.py " in config.command()
    monkeypatch.chdir(tmp_path)
    done = iekd(*config.command().split()[1:], "--dry-run")
    assert done.returncode == 0 and f"hash {config.hash}" in done.stdout, done.stderr


@pytest.mark.parametrize("preset", ["smoke", "class", "paper"])
def test_a_record_lies_at_its_place_where_nobody_has_the_file(file, preset):
    """What the preset fills in is no change, whether the method's code is here or not."""
    import_files([file])
    configs = [RunConfig.create(preset, method="mean-gap", gap_weight=w) for w in (1, 3)]
    for config in configs:
        made_up(config).save()
    paths = [config.path for config in configs]
    del registry.METHODS["mean-gap"]
    assert list(records.load()["path"]) == paths and "mean-gap-gap_weight=3" in paths[1]


def test_a_sweep_of_ones_own_losses_is_killed_and_resumed_and_its_table_needs_no_file(
    file, runs, capsys
):
    """With --jobs 2 and --pack 2: every process imports the file."""
    path = write(file, epochs=100)
    words = [sys.executable, "-m", "iekd", "sweep", str(path), "--jobs", "2", "--pack", "2"]
    first = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 400
    logs = store.cache_folder().rglob
    while not any("epoch" in log.read_text() for log in logs("*mean-gap*/*.log")):
        assert time.monotonic() < deadline and first.poll() is None, first.communicate()[0]
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    out, _ = first.communicate(timeout=60)
    assert first.returncode == 143 and "stopped" in out

    # The same command goes on; all are done.
    done = iekd("sweep", path, "--jobs", "2", "--pack", "2")
    assert done.returncode == 0 and ", 0 failed" in done.stdout, done.stdout + done.stderr
    assert len(re.findall("^(done|loaded) ", done.stdout, re.MULTILINE)) == 5
    found = records.load(method="mean-gap")
    assert sorted(found["variant"].str.rpartition("=")[2]) == ["1", "3"]

    # The table, the records and a bundle, where nobody has the file: this process never had it.
    file.unlink()
    assert "mean-gap" not in registry.METHODS
    assert main(["table", "--preset", "smoke"]) == 0
    assert capsys.readouterr().out.count("MEAN-GAP") == 2
    assert main(["bundle", str(runs.parent / "b.tar")]) == 0
