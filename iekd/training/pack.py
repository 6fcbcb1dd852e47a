"""Several runs in lock step, one step of each in turn; every one ends exactly as it would alone.

Runs with the same batches share their images, and runs with the same teacher its forward pass. A
test compares each method in a pack with `loop.train_epoch`.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from iekd.config import RunConfig
from iekd.errors import TrainingError
from iekd.networks import Output
from iekd.records import store
from iekd.training import loop
from iekd.training.run import Run
from iekd.training.teacher import Teacher

Row = dict[str, float]
# the names of each run's values, and the values of all runs in one row
Steps = tuple[list[list[str]], Tensor]


def in_step(config: RunConfig) -> tuple:
    """What runs must share to go in lock step: the steps of an epoch, and the shape of a batch."""
    fields = ("dataset", "train_images", "validation_images", "image_size", "batch_size")
    return tuple(getattr(config, name) for name in (*fields, "precision"))


def batches(config: RunConfig) -> tuple:
    """Runs that share this see the same batches."""
    return *in_step(config), config.seed, config.augment, config.views


class Pack:
    """Runs that agree in `in_step`: its `train_epoch` is `loop.train_epoch` of each of them."""

    def __init__(self, runs: Sequence[tuple[RunConfig, Run]]):
        self.runs = list(runs)

        # `plan[k]` is the kind of batches that run k sees; the first run of a kind draws them for
        # the others
        kinds = [batches(config) for config, _ in runs]
        different = list(dict.fromkeys(kinds))
        self.plan = [different.index(kind) for kind in kinds]
        self.first = [runs[kinds.index(kind)] for kind in different]

        # by run, for those with a shared teacher: the batches it sees, its network and its encoder
        teachers = {k: run.teacher for k, (_, run) in enumerate(runs)}
        whole = {k: teacher for k, teacher in teachers.items() if isinstance(teacher, Teacher)}
        keys = {k: (self.plan[k], _code(t.network), _code(t.encoder)) for k, t in whole.items()}
        users = Counter((plan, network) for plan, network, _ in keys.values())
        self.shared = {k: key for k, key in keys.items() if users[key[:2]] > 1}

    def train_epoch(self, epoch: int) -> list[Row | TrainingError]:
        """A row of the history for each run, or the error of one whose loss is not finite."""
        for _, run in self.runs:
            loop.begin(run, epoch)
        config, run = self.runs[0]
        plans = [loop.draw_epoch(each, its.dataset, epoch) for each, its in self.first]
        parts = torch.stack(plans).to(run.mean.device).split(config.batch_size, dim=-1)
        loop.expect(run, [plan for part in parts for plan in part])

        names: list[list[str]] = []
        log = []
        for i, part in enumerate(parts):
            for each, its in self.runs:
                loop.set_rate(its.optimiser, loop.learning_rate(each, epoch + i / len(parts)))
            names, row = self.step(part, epoch)
            log.append(row)

        # the only point that waits for the device
        values = torch.stack(log).double().cpu().split([len(its) for its in names], dim=1)
        rows = []
        for k, both in enumerate(self.runs):
            rows.append(row_or_error(loop.means_of, *both, epoch, names[k], values[k]))
        return rows

    def step(self, part: Tensor, epoch: int) -> Steps:
        """A step of every run on part (K, 4, B) of the K different plans of an epoch."""
        both = zip(self.first, part, strict=True)
        taken = [loop.take(*first, plan, epoch) for first, plan in both]
        answers = self._ask_shared_teachers([images for images, _ in taken])
        logs = []
        for k, (_, run) in enumerate(self.runs):
            images, batch = taken[self.plan[k]]
            if k in answers:
                run = run._replace(teacher=lambda *_, answer=answers[k]: answer)
            with self.branch(k):
                logs.append(loop.step(run, images, batch))
        self.join()
        values = [value for log in logs for value in log.values()]
        return [list(log) for log in logs], torch.stack(values)

    def branch(self, k: int) -> AbstractContextManager:
        """Encloses the step of run k; see `iekd.training.graphs`."""
        return nullcontext()

    def join(self) -> None:
        """Called after the steps of all runs."""

    def _ask_shared_teachers(self, images: Sequence[Tensor]) -> dict[int, Output]:
        """The teachers' answers by run; a network sees a batch once, an encoder a feature once."""
        seen, factors, answers = {}, {}, {}
        for k, key in self.shared.items():
            plan, network, _ = key
            teacher = self.runs[k][1].teacher
            if (plan, network) not in seen:
                seen[plan, network] = teacher.look(images[plan])
            if key not in factors:
                factors[key] = teacher.encode(seen[plan, network])
            answers[k] = teacher.answer(seen[plan, network], factors[key])
        return answers


def row_or_error(train: Callable[..., Row], *arguments: Any) -> Row | TrainingError:
    """A row of the history, or why there is none."""
    try:
        return train(*arguments)
    except TrainingError as error:
        return error


def _code(network: nn.Module | None) -> str:
    return "" if network is None else store.checksum(network.state_dict())
