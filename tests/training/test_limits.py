"""At the borders of what a configuration may say, and of where `train` may be called: a run ends
with a record, or is refused before anything is trained, with what to choose instead.
"""

import asyncio
import json
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import content, tiny

from iekd import records
from iekd.config import RunConfig
from iekd.config import methods as methods_of
from iekd.config.known import methods
from iekd.errors import ConfigError, TrainingError
from iekd.method.factor import FactorAutoEncoder
from iekd.training import finish, loop, runner
from iekd.training.run import build_network, build_run

FIELDS = {name: row.fields for name, row in methods().items()}

FEW = dict(train_images=20, validation_images=10, batch_size=10, teacher_epochs=1, ae_epochs=1)


def untrained(config: RunConfig) -> dict[str, torch.nn.Module]:
    """The parents of a run as they are before their training."""
    if not config.has_teacher:
        return {}
    teacher = build_network(config.teacher, config)
    factor = FactorAutoEncoder(teacher.feature_channels, config.factor_ratio, config.decoder)
    return {
        "teacher": teacher.eval().requires_grad_(False),
        "autoencoder": factor.eval().requires_grad_(False),
    }


# ---------------------------------------------------------------------- few epochs

ARMS = [(method, {}) for method in FIELDS] + [
    ("ie-dml", {"turns": "epoch"}),
    ("ie-dml", {"turns": "epoch", "place": "second"}),
]


@pytest.mark.parametrize(
    ("method", "fields"),
    ARMS,
    ids=lambda value: value if isinstance(value, str) else "".join(value),
)
def test_a_run_of_few_epochs_ends_with_its_record(method, fields, shelf, runs):
    shelf.lend(tiny("ie-ft", **FEW), to=runs)
    stages = [
        {"init_epochs": epochs} if "init_epochs" in FIELDS[method] else {} for epochs in range(5)
    ]
    configs = [
        tiny(method, **{**FEW, **fields, **stage, "epochs": epochs})
        for epochs, stage in enumerate(stages, 1)
    ]
    for epochs, record in enumerate(runner.train_pack(configs, progress=False), 1):
        assert len(record.history["loss"]) == epochs and record.metrics["last"].epoch == epochs
        if record.config.is_mutual:
            other = records.find(record.config.partner())
            record = records.find(record.config)  # numbers as they are written
            assert (
                finish.swap_curves(record.history) == other.history
                and other.metrics["last"].test_error is not None
            )


@pytest.mark.parametrize(
    "only",
    [
        "loss_task",
        "loss_task_peer",
        "train_error",
        "train_error_peer",
        "test_error_exact",
        "loss_inherit_peer",
    ],
)
def test_a_curve_that_one_of_two_networks_has_becomes_the_others(only):
    curves = {"lr": [1], "loss": [2], only: [3]}
    swapped = finish.swap_curves(curves)
    assert swapped == {
        "lr": [1],
        "loss": [2],
        only.removesuffix("_peer") if only.endswith("_peer") else f"{only}_peer": [3],
    }
    assert finish.swap_curves(swapped) == curves


@pytest.mark.parametrize(
    "method", [method for method, fields in FIELDS.items() if "split_ratio" in fields]
)
def test_every_split_ratio_can_be_built(method):
    """That it is the part which inherits is tested with each method."""
    config = tiny(method)
    student, peer, parents = (
        build_network(config.student, config),
        build_network(config.teacher, config),
        untrained(config),
    )
    for percent in range(101):
        one = config.replace(split_ratio=percent / 100)
        built = methods_of.build(
            one, student, parents.get("teacher", peer), parents.get("autoencoder")
        )
        assert all(value.isfinite().all() for value in built.state_dict().values())


@pytest.mark.parametrize("ratio", [0, 0.01, 0.5, 0.99, 1])
@pytest.mark.parametrize(
    "method", [method for method, fields in FIELDS.items() if "split_ratio" in fields]
)
def test_the_borders_of_the_split_ratio_can_be_trained(method, ratio):
    config = tiny(method, split_ratio=ratio, **FEW)
    row = loop.train_epoch(config, build_run(config, untrained(config), torch.device("cpu")), 0)
    assert row["loss"] > -1e9


# ---------------------------------------------------------------------- the last batch


@pytest.mark.parametrize(
    ("target", "ratio"), [("shuffled", 1.0), ("shuffled", 0.99), ("inherit", 0.01)]
)
def test_a_target_that_needs_a_half_without_channels_is_refused_before_anything_trains(
    monkeypatch, target, ratio
):
    monkeypatch.setattr(runner, "fit", lambda *_: pytest.fail("it trains"))
    config = tiny("ie-ft", explore_target=target, split_ratio=ratio)
    with pytest.raises(ConfigError, match="split_ratio: .* none of the .* channels"):
        runner.train(config, progress=False)


@pytest.mark.parametrize("network", ["vgg13", "mobilenetv2x0.5", "wrn10_1", "resnet8x0.25"])
@pytest.mark.parametrize(
    "method", ["supervised", "factor-ae", "kd", "ft", "od", "vid", "crd", "dml", "ie-dml"]
)
def test_a_last_batch_of_one_image_is_refused_exactly_where_it_cannot_be_trained(method, network):
    config = tiny(method, student=network, teacher=network, train_images=1, batch_size=64)
    try:
        loop.train_epoch(config, build_run(config, untrained(config), torch.device("cpu")), 0)
        runner.check_pair(config)
    except ValueError as error:
        with pytest.raises(
            ConfigError,
            match=f"{config.path}: the last batch of an epoch has 1 image "
            f".*{network} makes 1 value a channel",
        ):
            runner.check_pair(config)
        assert "Expected more than 1 value per channel" in str(error)


@given(
    st.integers(1, 500),
    st.integers(1, 300),
    st.sampled_from(["vgg13", "mobilenetv2x0.5", "resnet8"]),
)
@settings(max_examples=60, deadline=None)
def test_what_the_message_about_the_last_batch_says_to_choose_is_accepted(images, size, network):
    config = tiny(student=network, train_images=images, batch_size=size)
    try:
        runner.check_pair(config)
        assert network == "resnet8" or images % size != 1 % size
    except ConfigError as error:
        choices = re.findall(r"(batch_size|train_images): (\d+)", str(error))
        assert choices and network != "resnet8"
        for chosen in (
            [choices] if " and batch_size" in str(error) else [[choice] for choice in choices]
        ):
            runner.check_pair(config.replace(**{name: int(value) for name, value in chosen}))


@pytest.mark.parametrize(
    "fields",
    [
        dict(image_size=15),
        dict(image_size=12, validation_images=59_999),
        dict(image_size=15, batch_size=1),
    ],
)
def test_the_images_that_validation_leaves_count_and_so_does_their_size(fields):
    config = RunConfig.create(
        "class",
        dataset="fashion-mnist",
        student="vgg13",
        **{"validation_images": 59_743, "train_images": 0, **fields},
    )
    with pytest.raises(ConfigError, match="the last batch of an epoch has 1 image"):
        runner.check_pair(config)
    runner.check_pair(config.replace(image_size=16))  # two pixels a side are left


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_it_is_refused_before_anything_is_trained(monkeypatch, role):
    monkeypatch.setattr(runner, "fit", lambda *_: pytest.fail("trained"))
    config = tiny("kd", **{role: "vgg13"}, train_images=65, batch_size=64)
    with pytest.raises(
        ConfigError, match="Choose, for example, batch_size: 63 or train_images: 64"
    ):
        runner.train(config)


# ---------------------------------------------------------------------- threads and forks

IN_A_THREAD = {
    "train": lambda: runner.train(tiny()),
    "train with parents": lambda: runner.train(tiny("kd")),
    "train_pack": lambda: runner.train_pack([tiny(), tiny(seed=1)]),
    "train again": lambda: runner.train(tiny(), again=True),
    "make_run": lambda: runner.make_run(tiny()),
    "load_network": lambda: runner.load_network(tiny()),
}


@pytest.mark.parametrize("task", IN_A_THREAD)
def test_outside_the_main_thread_nothing_is_trained_with_a_seed_that_does_not_hold(runs, task):
    with (
        ThreadPoolExecutor(4) as pool,
        pytest.raises(
            TrainingError, match=r"threads .*train_pack, or in processes: iekd sweep --jobs"
        ),
    ):
        pool.submit(IN_A_THREAD[task]).result()
    with pytest.raises(TrainingError, match="threads"):
        asyncio.run(asyncio.to_thread(IN_A_THREAD[task]))
    assert not records.files(runs / "records")


def test_what_is_finished_is_loaded_in_a_thread_and_disturbs_no_seed():
    first = runner.train(tiny(), progress=False)
    found, state = [], torch.get_rng_state()
    thread = threading.Thread(
        target=lambda: found.extend([runner.train(tiny()), runner.load_network(tiny())])
    )
    thread.start()
    thread.join()
    assert found[0] == records.find(first.config) and torch.equal(torch.get_rng_state(), state)


FORKED = """
import json, multiprocessing, os, sys, torch
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tiny import content, tiny
from iekd import records
from iekd.training import runner

def task(config):
    return content(runner.train(config, progress=False))

if __name__ == "__main__":
    torch.set_num_threads(2)
    x = torch.randn(600, 600, requires_grad=True)
    (x @ x).sum().backward()  # from now on torch has threads that no child will have
    runner.train(tiny(seed=9), progress=False)
    fork = multiprocessing.get_context("fork")
    with fork.Pool(2) as pool:
        made = pool.map(task, [tiny(seed=0), tiny("kd", seed=1)])
    with ProcessPoolExecutor(1, mp_context=fork) as pool:
        made += [pool.submit(task, tiny(seed=2)).result()]
    process = fork.Process(target=task, args=(tiny(seed=3),))
    process.start()
    process.join()
    if (child := os.fork()) == 0:
        task(tiny(seed=4))
        os._exit(0)
    os.waitpid(child, 0)
    made += [content(records.find(tiny(seed=seed))) for seed in (3, 4)]
    print(json.dumps(made))
"""


def test_a_process_forked_after_computing_makes_what_its_seed_promises(runs, tmp_path, monkeypatch):
    (tmp_path / "forked.py").write_text(FORKED)
    environment = {
        "PYTHONPATH": f"{Path(__file__).parents[2]}:{Path(__file__).parents[1]}",
        "IEKD_RUNS": str(runs),
        "PATH": "/usr/bin:/bin",
    }
    words = [sys.executable, str(tmp_path / "forked.py")]
    made = json.loads(
        subprocess.run(
            words, env=environment, capture_output=True, timeout=400, check=True
        ).stdout.splitlines()[-1]
    )
    monkeypatch.setenv("IEKD_RUNS", str(tmp_path / "calm"))
    for config, found in zip(
        [tiny(), tiny("kd", seed=1), tiny(seed=2), tiny(seed=3), tiny(seed=4)], made, strict=True
    ):
        calm = content(runner.train(config, progress=False))  # with one thread
        assert {k: v for k, v in found.items() if k != "git"} == {
            k: v for k, v in json.loads(json.dumps(calm)).items() if k != "git"
        }
