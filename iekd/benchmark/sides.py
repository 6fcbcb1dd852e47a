"""The sides that `iekd bench` compares, the usual loop and the engine, each in its own process."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from iekd import data
from iekd.benchmark.timing import now
from iekd.benchmark.usual_loop import PlainRun
from iekd.config import RunConfig
from iekd.method.factor import FactorAutoEncoder
from iekd.speed import memory
from iekd.training import views
from iekd.training.run import Run, build_network, build_run
from iekd.training.session import train_epochs_of

PLAIN, CARELESS = "plain loop", "plain loop, gradient through the teacher"
ENGINE, TF32, BF16 = "engine", "engine, TF32", "engine, bfloat16"
FINITE, FINITE_BF16 = "engine, finite views", "engine, finite views, bfloat16"
# of the engine's sides; the others use float32
PRECISION = {TF32: "tf32", BF16: "bf16", FINITE_BF16: "bf16"}
VIEWS = 2  # of the sides with finite views: their number does not affect the time of a step

Work = Callable[[], Any]


def of(config: RunConfig, device: torch.device) -> list[str]:
    """The sides of a method on a device, the plain loop first."""
    names = [PLAIN, ENGINE, TF32, BF16]
    if config.has_teacher:
        names = [PLAIN, CARELESS, ENGINE, TF32, BF16, FINITE, FINITE_BF16]
    return [name for name in names if name != TF32 or device.type == "cuda"]


@contextmanager
def apart(side: str, *what: Any) -> Iterator[Callable[[Work], Any]]:
    """A side (see `epoch_of`) in its own process; yields what calls `train` or `peak` there.

    The engine's sides get what its users get: the allocator settings of `iekd sweep`.
    """
    missing = set()
    if side not in (PLAIN, CARELESS):
        missing = set(memory.HUGE_PAGES) - set(os.environ)
    for name in missing:
        os.environ[name] = memory.HUGE_PAGES[name]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, _prepare, (side, *what)) as process:
        # it starts now, with this environment
        process.submit(peak).result()
        for name in missing:
            del os.environ[name]
        yield lambda task: process.submit(task).result()


def _prepare(side: str, preset: str, method: str, images: int, device: str) -> None:
    global _work, _device
    if side not in (PLAIN, CARELESS):
        memory.keep()
    _device = torch.device(device)
    _work = epoch_of(side, preset, method, images, _device)


def train() -> None:
    """Train an epoch, in the process of a side."""
    _work()
    now(_device)


def peak() -> int:
    """The largest memory so far of a side's process in MB; on a GPU, of its tensors there."""
    if _device.type == "cuda":
        return torch.cuda.max_memory_allocated() >> 20
    return memory.peak()


def epoch_of(side: str, preset: str, method: str, images: int, device: torch.device) -> Work:
    """The function that trains an epoch on one side."""
    config = RunConfig.create(preset, method=method)
    config = config.replace(precision=PRECISION.get(side, "fp32"))
    dataset, parents = random_images(preset, images), untrained_parents(config)
    if side in (PLAIN, CARELESS):
        return PlainRun(config, parents, device, dataset, teacher_grad=side == CARELESS).train_epoch
    run = build_run(config, parents, device, dataset)
    if side in (FINITE, FINITE_BF16):
        # the teacher runs beforehand: that is not part of the time
        config = config.replace(views=VIEWS)
        made = views.compute(config, run, views.shapes(config, images))
        tensors = {name: tensor.to(device) for name, tensor in made.items()}
        run = run._replace(teacher=views.StoredTeacher(config, run.teacher, tensors))
    return epoch([(config, run)])


def epoch(runs: Sequence[tuple[RunConfig, Run]], number: int = 0) -> Work:
    """The function that trains an epoch of these runs as `iekd run` and `iekd pack` do."""
    return partial(train_epochs_of(runs), number)


# ---------------------------------------------------------------------- what they train on


def random_images(preset: str, images: int) -> data.DataSet:
    """A data set of random images with the preset's size and classes."""
    config = RunConfig.create(preset, student="resnet8", method="supervised")
    facts, shape = data.FACTS[config.dataset], data.image_shape(config)
    generator = torch.Generator().manual_seed(0)
    train = data.Split(
        torch.randint(256, (images, *shape), dtype=torch.uint8, generator=generator),
        torch.randint(facts.num_classes, (images,), generator=generator),
    )
    none = data.Split(train.images[:0], train.labels[:0])
    splits, numbers = (train, none, none), (facts.mean, facts.std, facts.flip, shape[-1] // 8)
    return data.DataSet("random", facts.num_classes, *splits, "random", *numbers)


@torch.no_grad()
def untrained_parents(config: RunConfig) -> dict[str, nn.Module]:
    """Untrained networks in the roles of the parents.

    Their batch normalisation has the statistics of a batch; otherwise, the features of a deep
    network overflow.
    """
    parents: dict[str, nn.Module] = {}
    if config.has_teacher:
        teacher = build_network(config.teacher, config)
        factor = FactorAutoEncoder(teacher.feature_channels, config.factor_ratio, config.decoder)
        both = {"teacher": teacher, "autoencoder": factor}
        parents = {role: both[role] for role in config.parents()}

    shape, generator = data.image_shape(config), torch.Generator().manual_seed(0)
    passed: Any = torch.randn(64, *shape, generator=generator)
    for network in parents.values():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        # from the teacher: what the auto-encoder sees
        passed = getattr(network.train()(passed), "feature", None)
    return {role: network.eval().requires_grad_(False) for role, network in parents.items()}
