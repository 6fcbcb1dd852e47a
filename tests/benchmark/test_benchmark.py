"""The benchmark measures both sides on the same work; how fast they are is no matter of a test."""

import copy
import os
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from iekd.benchmark import bench, loader, sides
from iekd.benchmark.usual_loop import PlainRun
from iekd.config import RunConfig
from iekd.data import augment
from iekd.method.features import Batch
from iekd.training import loop
from iekd.training.run import build_run

CPU = torch.device("cpu")


def test_both_loops_train_in_their_processes_and_a_ratio_is_taken_within_a_round():
    rows = bench.compare("class", "supervised", 130, 1, CPU)
    assert [row["side"] for row in rows] == [sides.PLAIN, sides.ENGINE, sides.BF16]
    assert rows[0]["ratio"] == 1 and all(
        row["images_per_second"] > 0 and row["peak_mb"] > 0 for row in rows
    )
    assert bench.ratios([4.0, 9.0, 2.0], [2.0, 3.0, 2.0]) == {"ratio": 2.0, "low": 1.0, "high": 3.0}


@pytest.mark.parametrize(
    "side", [sides.CARELESS, sides.ENGINE, sides.BF16, sides.FINITE, sides.FINITE_BF16]
)
def test_every_side_trains(side, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)  # one worker process
    sides.epoch_of(side, "class", "ie-ft", 130, CPU)()


def test_packed_runs_are_compared_with_the_same_runs_one_after_the_other():
    rows = bench.packing("class", 130, 1, CPU)
    assert [row["side"] for row in rows] == ["one after the other", "packed"] and {
        row["runs"] for row in rows
    } == {8}
    assert rows[0]["ratio"] == 1 and all(row["images_per_second"] > 0 for row in rows)


def test_our_loader_is_measured_beside_the_usual_one(monkeypatch):
    monkeypatch.setenv("IEKD_WORKERS", "1")
    rows = loader.compare(20, 1, CPU)
    assert [row["side"] for row in rows] == [loader.USUAL, loader.OURS]
    assert rows[0]["ratio"] == 1 and rows[1]["images_per_second"] > 0
    assert 50_000 < rows[0]["bytes"] < 200_000


def test_the_first_round_does_not_count_and_directions_alternate():
    done = []
    times = bench.in_turns({name: lambda name=name: done.append(name) for name in "ab"}, 2, CPU, "")
    assert done == list("baabba") and {name: len(seconds) for name, seconds in times.items()} == {
        "a": 2,
        "b": 2,
    }


@pytest.mark.parametrize("method", ["supervised", "kd", "ft"])
def test_plain_loop_and_engine_make_the_same_update(method):
    config = RunConfig.create("class", method=method, batch_size=64, lr=0.05)
    dataset, parents = bench.random_images("class", 64), sides.untrained_parents(config)
    run, plain = (
        build_run(config, parents, CPU, dataset),
        PlainRun(config, copy.deepcopy(parents), CPU, dataset),
    )
    before = {name: tensor.clone() for name, tensor in run.learner["student"].state_dict().items()}
    plain.student.load_state_dict(before)
    plain.method.load_state_dict(run.learner["method"].state_dict())
    plain.loader.dataset.transform.transforms[:2] = []  # neither crop nor flip
    run.optimiser.param_groups[0]["lr"] = 0.05
    index = torch.arange(64)
    loop.step(
        run,
        augment.normalise(dataset.train.images, run.mean, run.std),
        Batch(dataset.train.labels, index),
    )
    plain.train_epoch()
    ours, theirs = run.learner["student"].state_dict(), plain.student.state_dict()
    for name, _ in run.learner["student"].named_parameters():
        update = (theirs[name] - before[name]).norm()
        assert update > 0 and (ours[name] - theirs[name]).norm() < 3e-2 * update, (
            name
        )  # rounding, where a ReLU tips over


def test_the_cost_of_every_method_is_measured(monkeypatch):
    monkeypatch.setattr(bench, "METHODS", ("supervised", "fitnet", "crd"))
    rows = {row["method"]: row for row in bench.methods_cost(130, 1, CPU)}
    assert rows["supervised"]["cost"] == 1 and rows["supervised"]["parameters"] == 0
    assert rows["crd"]["parameters"] > 0 and rows["fitnet"]["low"] > 0


def test_what_was_measured_is_kept_by_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("IEKD_RUNS", str(tmp_path))
    card = {"device": {"name": "NVIDIA H100", "type": "cuda"}, "cores": 16}
    laptop = {"device": {"name": "Some CPU", "type": "cpu"}, "cores": 2}
    assert [bench.save(m).name for m in (card, laptop)] == ["nvidia-h100.json", "cpu-2-cores.json"]
    assert bench.load() == [laptop, card]


def test_a_profile_has_all_of_the_time():
    rows = bench.step_profile("class", "kd", 130, CPU)
    assert sum(row["share"] for row in rows) == pytest.approx(1, abs=1e-3)
    *largest, others = (row["operator"] for row in rows)
    assert others == "all others" and len(set(largest)) == len(largest) == 8
    shares = [row["share"] for row in rows[:-1]]
    assert any("conv" in name for name in largest[:4]) and shares == sorted(shares, reverse=True)


def test_on_a_gpu_the_time_is_that_of_the_kernels():
    def event(key, where, device_time, cpu_time=7.0, named=False):
        return SimpleNamespace(
            key=key,
            device_type=where,
            self_device_time_total=device_time,
            self_cpu_time_total=cpu_time,
            is_user_annotation=named,
        )

    events = [
        event("aten::conv2d", DeviceType.CPU, 5.0),  # the time of its kernel
        event("void cudnn::conv<float, 3>(float*)", DeviceType.CUDA, 5.0),
        event(
            "void at::native::(anonymous namespace)::add<4, Add<float>>(int)", DeviceType.CUDA, 1.0
        ),
        event(
            "void at::native::(anonymous namespace)::add<2, Add<float>>(int)", DeviceType.CUDA, 2.0
        ),
        event("Optimizer.step#SGD.step", DeviceType.CUDA, 8.0, named=True),
        event("Memcpy DtoD (Device -> Device)", DeviceType.CUDA, 0.5),
    ]
    expected = {"cudnn::conv": 5.0, "at::native::add": 3.0, "Memcpy DtoD": 0.5}
    assert bench.own_times(events, torch.device("cuda")) == expected
    assert bench.own_times(events[:1], CPU) == {"aten::conv2d": 7.0}


@pytest.mark.parametrize(("device", "more"), [("cpu", []), ("cuda", [sides.TF32])])
def test_tf32_is_a_side_where_there_is_such_a_thing(monkeypatch, device, more):
    asked = []
    call = nullcontext(lambda task: 0)
    monkeypatch.setattr(sides, "apart", lambda side, *_: asked.append(side) or call)
    monkeypatch.setattr(bench, "in_turns", lambda work, *_: {name: [1.0] for name in work})
    bench.compare("class", "kd", 130, 1, torch.device(device))
    assert [side for side in asked if side == sides.TF32] == more and len(asked) == 6 + len(more)


def test_every_side_computes_in_its_precision(monkeypatch):
    seen = {}
    monkeypatch.setattr(sides, "epoch", lambda runs: seen.update({side: runs[0][0].precision}))
    for side in (sides.ENGINE, sides.TF32, sides.BF16, sides.FINITE, sides.FINITE_BF16):
        sides.epoch_of(side, "paper", "supervised" if "views" not in side else "kd", 64, CPU)
    assert list(seen.values()) == ["fp32", "tf32", "bf16", "fp32", "bf16"]
