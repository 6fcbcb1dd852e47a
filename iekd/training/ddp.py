"""One run on several processes: `torchrun --standalone --nproc-per-node 2 -m iekd run ...`.

torch's DistributedDataParallel with its usual semantics: each process computes a shard of every
batch, with its own batch statistics, and gradients are averaged. The first process does everything
that a single-process run does (store, checkpoints, evaluation) and tells the others, which
`follow`, which run and which epoch to train.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from iekd.config import RunConfig
from iekd.errors import ConfigError, TrainingError
from iekd.method.features import Batch
from iekd.training import checkpoint, loop, signals
from iekd.training.run import Run


def launched() -> int:
    """How many processes torchrun has started; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if "LOCAL_RANK" in os.environ else 1


def count() -> int:
    """How many processes train a run together: within `joined`, all that were launched."""
    grouped = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if grouped else 1


@contextmanager
def joined() -> Iterator[bool]:
    """Inside, the processes of torchrun form one group; yields whether this is the first of them.

    Without torchrun it always is. Raises `ConfigError` if there are fewer GPUs than processes.
    """
    if launched() == 1:
        yield True
        return
    backend = "gloo"
    if gpus := torch.cuda.device_count():
        if (own := int(os.environ["LOCAL_RANK"])) >= gpus:
            raise ConfigError(
                f"torchrun: more processes than GPUs; choose --nproc-per-node {gpus}, "
                "or CUDA_VISIBLE_DEVICES= for the CPU"
            )
        torch.cuda.set_device(own)
        backend = "cpu:gloo,cuda:nccl"
    # they wait while the first one downloads, or waits for another job
    distributed.init_process_group(backend, timeout=timedelta(days=7))
    first = distributed.get_rank() == 0
    try:
        yield first
    finally:
        if first:
            _share(None)
    distributed.destroy_process_group()


def follow(make: Callable[[RunConfig], Run]) -> None:
    """The other processes' part: train their shards of the first one's runs until it is done."""
    with signals.deferred():
        while (order := _share(None)) is not None:
            if isinstance(order, RunConfig):
                trainer = Trainer(order, make(order))
            else:
                # the first process reports a loss that is not finite
                with suppress(TrainingError):
                    trainer.train_epoch(order)


class Trainer:
    """This process's part in training one run; the first process leads."""

    def __init__(self, config: RunConfig, run: Run):
        self.config, self.run = config, run
        self.leads = distributed.get_rank() == 0
        if self.leads:
            _share(config)
        # start from the first process's weights and momentum
        checkpoint.restore(run, _share(checkpoint.state(run)))
        # a stage of a method uses only some of the parameters
        staged = hasattr(run.learner["method"], "phase")
        self.losses = DistributedDataParallel(Losses(run), find_unused_parameters=staged)

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """`loop.train_epoch` on this process's shard of each batch."""
        if self.leads:
            _share(epoch)
        loop.begin(self.run, epoch)
        plan = loop.draw_epoch(self.config, self.run.dataset, epoch).to(self.run.mean.device)
        parts = plan.split(self.config.batch_size, dim=1)
        loop.expect(self.run, [shard_of(part) for part in parts])
        log = []
        for i, part in enumerate(parts):
            rate = loop.learning_rate(self.config, epoch + i / len(parts))
            loop.set_rate(self.run.optimiser, rate)
            log.append(self.step(part, epoch))
        return loop.epoch_means(self.config, self.run, epoch, log)

    def step(self, part: Tensor, epoch: int) -> dict[str, Tensor]:
        """`loop.step` on the shard of a batch; the values returned are those of the whole batch."""
        processes, shard = distributed.get_world_size(), shard_of(part)
        images, batch = loop.take(self.config, self.run, shard, epoch)
        # gradients are averaged over processes; images count equally, though shard sizes may differ
        weight = processes * shard.shape[1] / part.shape[1]
        self.run.optimiser.zero_grad()
        terms = self.losses(images, batch)
        (weight * sum(value for value in terms.values() if value.requires_grad)).backward()
        self.run.optimiser.step()
        values = weight / processes * torch.stack([value.detach() for value in terms.values()])
        distributed.all_reduce(values)
        return dict(zip(terms, values, strict=True))


def shard_of(part: Tensor) -> Tensor:
    """This process's share of a part (4, B) of the plan."""
    return part.tensor_split(distributed.get_world_size(), dim=1)[distributed.get_rank()]


class Losses(nn.Module):
    """A run's forward pass up to its loss terms: what DistributedDataParallel wraps."""

    def __init__(self, run: Run):
        super().__init__()
        # the teacher is in `run`, which is not a module, so only the learner is trained
        self.learner, self.run = run.learner, run

    def forward(self, images: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The terms, and `train_error`, which has no gradient."""
        ((_, output, terms),) = loop.updates(self.run, images, batch)
        return terms if output is None else terms | loop.mistakes(output, batch)


def _share(value: Any) -> Any:
    """The first process's value, in all of them."""
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]
