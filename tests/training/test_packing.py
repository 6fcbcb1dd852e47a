"""Packs: several runs in lock step, each of which must end exactly as it would alone."""

import math

import pytest
import torch
from tiny import content, tiny

from iekd import records
from iekd.config.known import methods
from iekd.errors import Busy, ConfigError, TrainingError
from iekd.records import store
from iekd.sweeps import sweep
from iekd.training import locks, loop, member, runner
from iekd.training.graphs import GraphedPack
from iekd.training.pack import Pack

FIRST_STAGE = {"fitnet": {"init_epochs": 1}, "ab": {"init_epochs": 1}}
METHODS = [name for name in methods() if name != "factor-ae"]


def configs_of(seeds=(0,), methods=METHODS):
    return [
        tiny(name, seed=seed, **FIRST_STAGE.get(name, {})) for seed in seeds for name in methods
    ]


def unpacked(record) -> dict:
    """What must be equal in a record made alone and one made in a pack."""
    found = content(record)
    return {**found, "device": {k: v for k, v in found["device"].items() if k != "packed"}}


pytestmark = pytest.mark.usefixtures("lent")


@pytest.fixture
def elsewhere(tmp_path, monkeypatch, shelf):
    """elsewhere('name') -> from now on the store is another one, with parents in it."""

    def switch(name):
        monkeypatch.setenv("IEKD_RUNS", str(tmp_path / name))
        shelf.lend(tiny("ie-ft"), to=tmp_path / name)

    return switch


def test_every_method_ends_in_a_pack_as_it_does_alone(elsewhere, shelf):
    configs = configs_of()
    alone = [unpacked(shelf.train(config)) for config in configs]
    elsewhere("packed")
    packed = runner.train_pack(configs, progress=False)
    assert [unpacked(record) for record in packed] == alone
    assert {record.device["packed"] for record in packed} == {len(configs)}


@pytest.mark.parametrize("method", [*METHODS, "factor-ae"])
def test_an_epoch_of_a_pack_is_that_of_the_loop(method):
    """Also for a pack of one, and for one whose runs share nothing; `train` takes the loop, so the
    rows say it all.
    """
    config = tiny(method, augment="standard", **FIRST_STAGE.get(method, {}))
    other = tiny("supervised", augment="standard", seed=7)
    alone = runner.make_run(config)
    rows = [loop.train_epoch(config, alone, epoch) for epoch in range(3)]
    for others in ([], [other]):
        members = [(each, runner.make_run(each)) for each in (config, *others)]
        together = Pack(members)
        assert [together.train_epoch(epoch)[0] for epoch in range(3)] == rows
        states = [run.learner.state_dict() for run in (members[0][1], alone)]
        assert store.checksum(states[0]) == store.checksum(states[1])


def test_seeds_and_numbers_of_epochs_may_differ(elsewhere):
    configs = [tiny("kd", seed=seed, epochs=epochs) for seed in (0, 1) for epochs in (2, 3)] + [
        tiny("ie-ft", seed=1)
    ]
    elsewhere("alone")
    alone = [unpacked(runner.train(config, progress=False)) for config in configs]
    elsewhere("packed")
    assert [unpacked(record) for record in runner.train_pack(configs, progress=False)] == alone


def test_a_teacher_looks_at_a_batch_once_for_all_runs_that_share_it():
    configs = configs_of((0, 1), ("kd", "ft", "ie-ft", "at"))
    members = [(config, runner.make_run(config)) for config in configs]
    together, looks = Pack(members), []
    for _, run in members:
        run.teacher.network.register_forward_hook(lambda *_: looks.append(1))
    steps = -(-configs[0].train_images // configs[0].batch_size)
    together.train_epoch(0)
    # two seeds, each with batches and a teacher of its own
    assert len(looks) == 2 * steps
    assert list(together.shared) == list(range(len(members)))


def test_an_encoder_sees_a_batch_once_for_all_runs_that_share_it_and_others_keep_theirs():
    configs = [tiny("ft"), tiny("ie-ft"), tiny("kd"), tiny("ie-ft", reconstruction="l1")]
    runs = [runner.make_run(config) for config in configs]
    together, codes = Pack(list(zip(configs, runs, strict=True))), []
    for run in runs:
        if run.teacher.encoder is not None:
            run.teacher.encoder.register_forward_hook(lambda *_: codes.append(1))
    together.train_epoch(0)
    steps = -(-configs[0].train_images // configs[0].batch_size)
    # the two auto-encoders; a test above says that the errors are those of runs alone
    assert len(codes) == 2 * steps


def test_teachers_are_shared_by_runs_with_the_same_batches_only():
    configs = [tiny("kd", teachers=1, seed=0), tiny("kd", teachers=1, seed=1)]
    assert Pack([(config, runner.make_run(config)) for config in configs]).shared == {}


def test_a_run_that_fails_leaves_the_others_alone(elsewhere):
    good, bad = tiny("kd"), tiny("kd", lr=1e30)
    elsewhere("alone")
    expected = unpacked(runner.train(good, progress=False))
    elsewhere("packed")
    runner.train(good.teacher_run(), progress=False)
    first, second = runner.train_pack([bad, good], progress=False)
    assert isinstance(first, TrainingError) and bad.path in str(first) and not records.find(bad)
    assert unpacked(second) == expected


def test_runs_that_are_finished_or_busy_are_left_out(elsewhere):
    done, busy, new = (tiny(seed=seed) for seed in range(3))
    before = runner.train(done, progress=False)
    with locks.claim(busy):
        outcomes = runner.train_pack([done, busy, new], progress=False)
    assert content(outcomes[0]) == content(before) and isinstance(outcomes[1], Busy)
    assert content(outcomes[2]) == content(records.find(new)) and not records.find(busy)


def test_runs_at_different_epochs_go_on_together(elsewhere, monkeypatch):
    configs = configs_of(methods=("kd", "ft"))
    elsewhere("alone")
    alone = [unpacked(runner.train(config, progress=False)) for config in configs]
    elsewhere("packed")
    monkeypatch.setattr(member, "CHECKPOINT_SECONDS", -1)
    monkeypatch.setattr(member, "CHECKPOINT_SHARE", math.inf)
    train_epoch = loop.train_epoch

    def until(config, run, epoch):
        if epoch == 2:
            raise KeyboardInterrupt
        return train_epoch(config, run, epoch)

    runner.train(configs[0].teacher_run(), progress=False)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "train_epoch", until)
        runner.train(configs[0], progress=False)
    assert (store.cache_folder() / f"{configs[0].path}.checkpoint.safetensors").exists()
    assert [unpacked(record) for record in runner.train_pack(configs, progress=False)] == alone


@pytest.mark.parametrize(
    "other", [{"batch_size": 32}, {"precision": "tf32"}, {"precision": "bf16"}]
)
def test_what_cannot_go_in_step_is_refused(other):
    with pytest.raises(ConfigError, match="cannot be packed"):
        runner.train_pack([tiny(), tiny(**other)], progress=False)


def test_a_packed_sweep_makes_the_same_records(elsewhere):
    configs = configs_of((0, 1), ("supervised", "kd", "ie-ft"))
    elsewhere("alone")
    alone = {config.path: unpacked(runner.train(config, progress=False)) for config in configs}
    elsewhere("packed")
    outcomes = sweep.sweep([*configs, tiny(lr=1e30)], jobs=1, pack=4)
    assert {
        path: unpacked(records.find(config)) for config in configs for path in [config.path]
    } == alone
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    assert [outcome.config for outcome in failed] == [tiny(lr=1e30)] and "became" in failed[
        0
    ].reason
    assert any("in a pack of" in outcome.reason for outcome in outcomes)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", METHODS)
def test_a_cuda_graph_computes_what_its_step_computes(method):
    # so many epochs that smaller batches are captured
    config = tiny(method, batch_size=16, epochs=5, lr=0.01, **FIRST_STAGE.get(method, {}))
    histories = []
    for kind in (Pack, GraphedPack):
        one = kind([(config, runner.make_run(config, "cuda"))])
        histories.append([one.train_epoch(epoch)[0]["loss"] for epoch in range(5)])
    assert histories[1] == pytest.approx(histories[0], rel=1e-2)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_pack_in_one_cuda_graph_computes_what_its_runs_compute_alone():
    configs = [
        tiny(method, seed=seed, batch_size=16)
        for seed in (0, 1)
        for method in ("supervised", "kd", "ft", "ie-ft")
    ]
    runs = [runner.make_run(config, "cuda") for config in configs]
    alone = [
        loop.train_epoch(config, run, 0)["loss"] for config, run in zip(configs, runs, strict=True)
    ]
    runs = [runner.make_run(config, "cuda") for config in configs]
    rows = GraphedPack(list(zip(configs, runs, strict=True))).train_epoch(0)
    assert [row["loss"] for row in rows] == pytest.approx(alone, rel=1e-2)
