"""ImageNet read from its files while a run trains: whoever reads, and however often it is stopped,
the numbers are the same. On 24 JPEGs.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jpegs
import pytest
import torch
from test_ddp import after, freeze_statistics, fresh, load, note_runs, together
from test_packing import unpacked
from tiny import content, start

from iekd import data, records
from iekd.analysis import metrics
from iekd.data import Split, imagenet, sources, stream
from iekd.errors import ConfigError
from iekd.training import checkpoint, loop, member, runner, session
from iekd.training.pack import Pack
from iekd.training.run import build_run
from iekd.training.runner import train

CPU = torch.device("cpu")
CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    yield jpegs.in_folder(tmp_path / "pictures", monkeypatch)
    sources._load.cache_clear()


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """elsewhere('name') -> from now on the store is another one."""
    return lambda name: monkeypatch.setenv("IEKD_RUNS", str(tmp_path / name))


# ---------------------------------------------------------------------- who reads


def test_the_number_of_workers_changes_nothing(elsewhere, monkeypatch):
    """Teacher, auto-encoder and student, two epochs: weights, history and errors, bit for bit."""
    found = []
    for workers in ("0", "1", "2"):
        monkeypatch.setenv("IEKD_WORKERS", workers)
        elsewhere(workers)
        found.append(content(train(jpegs.run("ie-ft"), progress=False)))
    assert found[0] == found[1] == found[2]
    assert found[0]["metrics"]["last"]["test_error"] is not None


@pytest.mark.parametrize("augment", ["standard", "none"])
def test_where_the_crop_is_the_whole_image_it_is_the_path_of_tensors(folder, monkeypatch, augment):
    """Files of the run's size, mirrored or not: the draws are the same."""
    shutil.rmtree(folder)
    jpegs.write(folder, (32, 32))
    sources._load.cache_clear()
    monkeypatch.setattr(stream, "SCALE", (1.0, 1.0))
    monkeypatch.setattr(stream, "RATIO", (1.0, 1.0))
    monkeypatch.setattr(stream, "MIDDLE", 1.0)
    config = jpegs.run(augment=augment)
    streamed = data.load(config)
    splits = {}
    for name in ("train", "validation", "test"):
        split = getattr(streamed, name)
        images = split.images[:] if len(split.labels) else torch.zeros(0, 3, 32, 32).byte()
        splits[name] = Split(images, split.labels)
    found = []
    for dataset in (streamed, streamed._replace(pad=0, **splits)):
        run = build_run(config, {}, CPU, dataset)
        rows = [loop.train_epoch(config, run, epoch) for epoch in range(3)]
        rows.append(loop.evaluate(run, "test"))
        found.append(after(config, run, rows))
    differ = [name for name in found[1] if not torch.equal(found[0][name], found[1][name])]
    assert not differ


def test_crops_are_new_in_every_epoch_and_those_of_the_seed(folder):
    config = jpegs.run()
    dataset = data.load(config)
    plans = [loop.draw_epoch(config.replace(seed=seed), dataset, e) for seed, e in ((0, 0), (0, 1))]
    assert torch.equal(plans[0], loop.draw_epoch(config, dataset, 0))
    assert set(plans[0][1].tolist()).isdisjoint(plans[1][1].tolist())
    assert plans[0][3].unique().tolist() == [0, 1]


# ---------------------------------------------------------------------- stopped


def train_in_child(root: str) -> None:
    os.environ |= {"IEKD_DATA": root, "IEKD_WORKERS": "0"}
    jpegs.as_small()
    member.CHECKPOINT_SECONDS, member.CHECKPOINT_SHARE = -1, 1e9
    train(jpegs.run(epochs=6), progress=False)


def test_a_run_that_is_killed_goes_on_to_the_same_record(runs, elsewhere, folder):
    config = jpegs.run(epochs=6)
    process = start(train_in_child, runs, str(folder.parent))
    path = checkpoint.path_of(config)
    while process.is_alive() and not path.exists():
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL and path.exists() and not records.find(config)
    resumed = content(train(config, progress=False))
    elsewhere("calm")
    assert content(train(config, progress=False)) == resumed


IMPORTED = """
import os, sys
sys.path.insert(0, {tests!r})
import jpegs
from iekd.training import member
jpegs.as_small()
member.CHECKPOINT_SECONDS = -1
"""


def test_a_signal_to_all_processes_ends_the_run_in_good_order(runs, folder, tmp_path):
    """As a scheduler sends it: to the workers, too."""
    (tmp_path / "small.py").write_text(IMPORTED.format(tests=str(CHECKOUT / "tests")))
    config = jpegs.run(epochs=2000)
    words = [sys.executable, "-m", "iekd", "--import", str(tmp_path / "small.py")]
    process = subprocess.Popen(
        [*words, *config.command().split()[1:]],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), "IEKD_WORKERS": "2"},
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    path = checkpoint.path_of(config)
    while process.poll() is None and not path.exists():
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 143 and "continues from the last checkpoint" in said, said
    assert "Traceback" not in said


# ---------------------------------------------------------------------- several processes, runs


def note_share(root: str, folder: Path) -> None:
    """`test_ddp.note_runs` of a run on these files, and which files this process decoded."""
    os.environ |= {"IEKD_DATA": root, "IEKD_WORKERS": "0"}
    jpegs.as_small()
    decoded, read = set(), stream.Files.__getitem__
    stream.Files.__getitem__ = lambda self, row: decoded.add(row[0]) or read(self, row)
    note_runs([ONE], folder, True)
    torch.save(torch.tensor(sorted(decoded)), folder / f"decoded-{os.environ['RANK']}")


# one epoch, so that the shares of the two processes are known
ONE = jpegs.run("kd", epochs=1, batch_size=24, lr=1e-4, schedule="steps")


def test_two_processes_are_one_with_frozen_statistics(runs, folder, tmp_path, monkeypatch):
    assert together(note_share, runs, str(folder.parent), tmp_path) == [0, 0]
    shares = [load(tmp_path / f"decoded-{rank}").tolist() for rank in (0, 1)]
    assert [len(share) for share in shares] == [12, 12] and not {*shares[0]} & {*shares[1]}
    torch.set_default_dtype(torch.float64)
    try:
        freeze_statistics(monkeypatch.setattr)
        run = fresh(ONE)
        expected = after(ONE, run, [loop.train_epoch(ONE, run, 0)])
    finally:
        torch.set_default_dtype(torch.float32)
    found = load(tmp_path / "0-0")
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= 1e-5 * max(value.abs().max(), 1e-3), name


def test_runs_in_a_pack_share_what_is_read_and_end_as_alone(elsewhere, monkeypatch):
    configs = [jpegs.run("kd"), jpegs.run("ie-ft"), jpegs.run(augment="none"), jpegs.run(seed=1)]
    elsewhere("alone")
    alone = [unpacked(train(config, progress=False)) for config in configs]
    elsewhere("packed")
    for config in configs:
        for parent in config.parents().values():
            train(parent, progress=False)
    decoded, read = [], stream.Files.__getitem__
    monkeypatch.setattr(
        stream.Files, "__getitem__", lambda self, row: decoded.append(row) or read(self, row)
    )
    assert [unpacked(each) for each in runner.train_pack(configs, progress=False)] == alone
    trained = [row for row in decoded if row[1] != stream.CENTRE]
    assert len(trained) == 2 * 24 * len({0, 1})  # epochs, images, seeds


def test_on_a_gpu_it_goes_without_graphs():
    run = SimpleNamespace(
        mean=SimpleNamespace(device=SimpleNamespace(type="cuda")),
        dataset=SimpleNamespace(train=SimpleNamespace(images=object())),
        teacher=None,
    )
    trainer = session.train_epochs_of([(jpegs.run(), run)])
    assert type(trainer.__self__) is Pack


def test_finite_views_are_refused_before_anything_trains(monkeypatch):
    monkeypatch.setattr(runner, "fit", lambda *_: pytest.fail("trained"))
    with pytest.raises(
        ConfigError, match="views: 2 is not usable; imagenet is read from its files"
    ):
        train(jpegs.run("kd", views=2))


# ---------------------------------------------------------------------- what comes of it


def test_what_was_learned_can_be_analysed():
    config = jpegs.run("kd")
    train(config, progress=False)
    assert not metrics.impossible(config)
    metrics.analyse(config)
    assert records.analysis_of(records.find(config))


def test_the_squashed_images_train_as_any_tensor(folder, elsewhere, monkeypatch):
    imagenet.pack(sources.load_raw("imagenet"), folder.parent / "imagenet64")
    configs = [jpegs.run(method, "imagenet64") for method in ("kd", "ie-ft")]
    elsewhere("alone")
    alone = [unpacked(train(config, progress=False)) for config in configs]
    elsewhere("packed")
    assert [unpacked(each) for each in runner.train_pack(configs, progress=False)] == alone
    assert alone[0]["data"]["name"] == "imagenet64"
