"""Runs trained together, from their last checkpoints to their records, in this process."""

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import torch
from tqdm import tqdm

from iekd import records
from iekd.config import RunConfig
from iekd.errors import TrainingError
from iekd.records import Record
from iekd.speed import memory
from iekd.training import checkpoint, ddp, log, loop, signals
from iekd.training.finish import finish
from iekd.training.graphs import GraphedPack, graphs_wanted
from iekd.training.member import Member
from iekd.training.pack import Pack, Row, row_or_error
from iekd.training.run import Run

Trainer = Callable[[int], list[Row | TrainingError]]  # trains one epoch of some runs
Make = Callable[..., Run]  # from a configuration, a device, and a loaded data set


class Session:
    """Trains runs to their end, or to the error that ends them; see `train`."""

    def __init__(self, configs: Sequence[RunConfig], make: Make, progress: bool):
        self.clock = time.monotonic()
        memory.keep()
        self.log = log.folder()
        # the code as it was when the runs began
        self.provenance = _provenance(len(configs))
        self.members: list[Member] = []
        for config in configs:
            self.members.append(self._begin(config, make))
        self._count_time(self.members)

        self.outcomes: dict[str, Record | TrainingError] = {}
        self.together: list[Member] = []  # those that `trainer` trains
        self.trainer: Trainer
        first, *others = configs
        title = (
            f"{len(configs)} runs" if others else f"{first.pair} {first.variant} seed {first.seed}"
        )
        done, total = sum(len(m.history) for m in self.members), sum(c.epochs for c in configs)
        shown = {"initial": done, "total": total, "unit": "epoch", "disable": not progress}
        self.bar = tqdm(desc=title, **shown)

    def train(self) -> list[Record | TrainingError]:
        """Records or errors, in the order of the configurations.

        A run that resumes at a later epoch waits until the others reach it.
        """
        with self.bar, signals.deferred():
            for member in self.members:
                if member.config.is_given:
                    self._take(member)
            while active := [m for m in self.members if m.config.path not in self.outcomes]:
                signals.check()
                epoch = min(len(member.history) for member in active)
                try:
                    self._train_epoch([m for m in active if len(m.history) == epoch], epoch)
                except RuntimeError:
                    # a signal to all processes immediately ends those that read images
                    signals.check()
                    raise
        return [self.outcomes[member.config.path] for member in self.members]

    def _take(self, member: Member) -> None:
        """Take a teacher from a file: it is measured, not trained."""
        member.history.append(member.measure())
        self._count_time([member])
        self.outcomes[member.config.path] = self._end(member)
        self.bar.update()

    def _begin(self, config: RunConfig, make: Make) -> Member:
        """A run with all its parts on the device, at its last checkpoint."""
        found = {role: records.find(parent) for role, parent in config.parents().items()}
        parents = {role: record.weights for role, record in found.items() if record}
        run = make(config, this_device(), self.members[0].run.dataset if self.members else None)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        member = Member(config, run, parents, started)
        member.history, member.seconds = checkpoint.resume(config, parents, run)
        return member

    def _train_epoch(self, together: list[Member], epoch: int) -> None:
        """Train, measure and save an epoch of these runs."""
        if together != self.together:
            self.together, self.trainer = together, _trainer(together)
        for member, row in zip(together, self.trainer(epoch), strict=True):
            if isinstance(row, TrainingError):
                self.outcomes[member.config.path] = row
            else:
                member.history.append(row | member.measure())
                if self.log:
                    log.write(self.log, member.config.path, member.history)

        spent = self._count_time(together)
        for member in together:
            if member.config.path in self.outcomes:
                continue
            if epoch + 1 < member.config.epochs:
                member.save_if_due(len(together))
            else:
                self.outcomes[member.config.path] = self._end(member)
        self._show(spent)

    def _count_time(self, together: list[Member]) -> float:
        """Share out the time since the last call; returns it."""
        spent, self.clock = time.monotonic() - self.clock, time.monotonic()
        for member in together:
            member.seconds += spent / len(together)
        return spent

    def _end(self, member: Member) -> Record | TrainingError:
        try:
            record = finish(member, self.provenance)
        except TrainingError as error:
            return error
        checkpoint.path_of(member.config).unlink(missing_ok=True)
        return record

    def _show(self, seconds: float) -> None:
        """Advance the bar; a single run shows its loss and errors."""
        shown = {}
        if len(self.together) == 1 and self.together[0].history:
            last = self.together[0].history[-1]
            known = [name for name in ("loss", "train_error", "test_error") if name in last]
            shown = {name: f"{last[name]:.3g}" for name in known}
        images = sum(len(member.run.dataset.train.labels) for member in self.together)
        self.bar.set_postfix(shown | {"img/s": f"{images / seconds:.0f}"})
        self.bar.update(len(self.together))


def this_device() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def train_epochs_of(runs: Sequence[tuple[RunConfig, Run]]) -> Trainer:
    """The function that trains an epoch of these runs: CUDA graphs on a GPU, else pack or loop.

    No graphs for a stream: a graph reads images by index from the device, where they are not.
    """
    run = runs[0][1]
    if run.mean.device.type == "cuda":
        graphed = graphs_wanted() and isinstance(run.dataset.train.images, torch.Tensor)
        return (GraphedPack if graphed else Pack)(runs).train_epoch
    if len(runs) > 1:
        return Pack(runs).train_epoch
    config, run = runs[0]
    return lambda epoch: [row_or_error(loop.train_epoch, config, run, epoch)]


def _trainer(together: Sequence[Member]) -> Trainer:
    runs = [(member.config, member.run) for member in together]
    if ddp.count() == 1:
        return train_epochs_of(runs)
    trainer = ddp.Trainer(*runs[0])
    return lambda epoch: [row_or_error(trainer.train_epoch, epoch)]


def _provenance(runs: int) -> dict:
    provenance = records.provenance()
    device = dict(provenance["device"])
    if runs > 1:
        device["packed"] = runs
    if ddp.count() > 1:
        device["processes"] = ddp.count()
    return {**provenance, "device": device}
