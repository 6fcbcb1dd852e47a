"""The moving parts of one run, at their initial values."""

import os
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from iekd import data, networks, records
from iekd.config import RunConfig, methods
from iekd.errors import TrainingError
from iekd.speed import precision
from iekd.training import given
from iekd.training.teacher import Teacher


class Run(NamedTuple):
    """The moving parts of a run.

    `learner` holds everything that is trained: 'student' (if any), 'peer' (mutual learning) and
    'method'. `teacher` is a `Teacher` or a callable with the same signature,
    (images, batch) -> output. `mean` and `std` (1, C, 1, 1) normalise images.
    """

    learner: nn.ModuleDict
    teacher: Any
    optimiser: torch.optim.SGD
    dataset: data.DataSet
    mean: Tensor
    std: Tensor


def build_run(
    config: RunConfig,
    parents: Mapping[str, nn.Module],
    device: torch.device,
    dataset: data.DataSet | None = None,
) -> Run:
    """The parts of a run on a device. Every method starts from the same student weights.

    From then on this process computes in the run's precision. `parents` are the trained networks by
    role: 'teacher', 'autoencoder'. `dataset` replaces the one that the configuration names.
    Raises `TrainingError` outside the main thread.
    """
    _refuse_threads(config)
    precision.set_tf32(config.precision)
    dataset = dataset or data.load(config)

    learner = _build_learner(config, parents, dataset.train.labels)
    if config.is_given:
        given.load(learner["student"], config.weights_file)
    learner.to(device, memory_format=torch.channels_last)

    teacher = None
    if "teacher" in parents:
        encoder = parents["autoencoder"].encoder if "autoencoder" in parents else None
        teacher = Teacher(parents["teacher"], encoder, config.precision == "bf16").move_to(device)

    mean, std = (torch.tensor(v, device=device) for v in (dataset.mean, dataset.std))
    pixels = mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)
    optimiser = _build_optimiser(config, learner, device)
    return Run(learner, teacher, optimiser, _move(dataset, device), *pixels)


def build_network(name: str, config: RunConfig) -> nn.Module:
    """A fresh network for the run's data set that trains in the run's precision."""
    facts = data.FACTS[config.dataset]
    network = networks.build(name, facts.num_classes, facts.channels)
    return precision.train_in_bf16(network) if config.precision == "bf16" else network


def _refuse_threads(config: RunConfig) -> None:
    """Refuse other threads: torch has one generator for all of them."""
    if threading.current_thread() is not threading.main_thread():
        raise TrainingError(
            f"{config.path}: runs in threads would draw their initial weights from one another's "
            "seeds. Train several at once with iekd.training.runner.train_pack, or in processes: "
            "iekd sweep --jobs, or multiprocessing"
        )


def _build_learner(
    config: RunConfig, parents: Mapping[str, nn.Module], labels: Tensor
) -> nn.ModuleDict:
    """Student, peer and method, drawn from the run's seed; torch's own generator is left alone."""
    learner = nn.ModuleDict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if config.student != "none":
            learner["student"] = build_network(config.student, config)
        if config.is_mutual:
            learner["peer"] = build_network(config.teacher, config)

        # in mutual learning the peer is the method's teacher
        known = {**parents, "teacher": learner["peer"]} if config.is_mutual else parents
        student = dict(learner).get("student")
        teacher, autoencoder = known.get("teacher"), known.get("autoencoder")
        learner["method"] = methods.build(config, student, teacher, autoencoder, labels)
    return learner


def _build_optimiser(
    config: RunConfig, learner: nn.Module, device: torch.device
) -> torch.optim.SGD:
    """SGD with Nesterov momentum over all parameters."""
    # a CUDA graph reads the rate from the device
    rate = torch.tensor(config.lr, device=device) if device.type == "cuda" else config.lr
    how: dict[str, Any] = {"weight_decay": config.weight_decay, "nesterov": config.momentum > 0}
    optimiser = torch.optim.SGD(learner.parameters(), rate, config.momentum, **how, fused=True)

    # Momentum is zero from the start: fused SGD cannot mix parameters with and without it.
    if config.momentum:
        for parameter in learner.parameters():
            optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimiser


def _move(dataset: data.DataSet, device: torch.device) -> data.DataSet:
    """The data set with its images on the device."""
    splits = {}
    for name in ("train", "validation", "test"):
        tensors = getattr(dataset, name)
        splits[name] = data.Split(*(t if t is None else t.to(device) for t in tensors))
    return dataset._replace(**splits)


def _use_one_thread() -> None:
    """A forked process has none of its parent's threads and would wait for them forever."""
    torch.set_num_threads(1)
    # it includes the number of threads
    records.provenance.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_use_one_thread)
