"""`train(config)`: load the finished record, or resume the checkpoint, or train. The one primitive of the book.

Read top to bottom: `train` finds out what is left to do, `_fit` runs the epochs (each is `engine.train_epochs`), `_finish` stores
what came out. `train_pack` does the same for several runs in lock step, each of which ends as it would alone.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from iekd import data, networks, records
from iekd.config import RunConfig, methods
from iekd.errors import ConfigError, TrainingError
from iekd.method.factor import FactorAutoEncoder
from iekd.method.features import PairError
from iekd.records import Record, store
from iekd.speed import memory
from iekd.training import checkpoint, digest, engine, parallel, signals, views
from iekd.training.engine import Run, build_network
from iekd.training.finish import finish
from iekd.training.graphs import Graphed, graphs_wanted
from iekd.training.locks import claim, claim_for_all
from iekd.training.probe import probe

CHECKPOINT_SECONDS = (
    2.0  # least time between two checkpoints, which are written at the end of an epoch
)
CHECKPOINT_SHARE = 0.05  # of the time, at most, goes into them


def train(
    config: RunConfig, *, progress: bool = True, again: bool = False, wait: bool = True
) -> Record:
    """The record of a run: from its file if it is finished, else trained, from its last checkpoint if there is one.

    Parents (teacher, factor auto-encoder) are trained first, by the same call. `again` trains anew even if a record exists.
    Two processes that ask for the same run share it: the second waits and then loads the record; without `wait` it raises `Busy`.
    Raises `DataError`, `StoreError` or `TrainingError` with the cause and the way out; a killed run loses one epoch, or some seconds.
    """
    if not isinstance(config, RunConfig):
        raise ConfigError(
            f"train takes a configuration, for example RunConfig.create(method='kd'), not {config!r}"
        )
    before = parallel.lead(records.find, config)
    if before and not again and not _outdated(before):
        return before
    if "first" in config.parents():  # the training of the first network leaves both records
        train(config.partner(), progress=progress, again=True, wait=wait)
        return parallel.lead(records.find, config)
    parallel.lead(check_pair, config)
    if parallel.count() > 1:
        parallel.lead(_fetch, config)
    for parent in config.parents().values():
        _weights(parent, progress, wait)
    with claim_for_all(config, wait):
        record = parallel.lead(records.find, config)
        if record and record != before:  # another process finished it while this one waited
            return record
        (outcome,) = _fit([config], progress)
    if isinstance(outcome, TrainingError):
        raise outcome
    return outcome


def train_pack(
    configs: Sequence[RunConfig], *, progress: bool = True
) -> list[Record | TrainingError]:
    """`train` for several runs at once, in lock step: runs with one seed share their images, and with one teacher its forward pass.

    They must agree in `engine.in_step` and their parents be finished, or these are trained first, one by one. In their place in the list,
    `Busy` stands for a run that another process trains, another `TrainingError` for one that failed; the others go on.
    """
    outcomes: dict[str, Record | TrainingError] = {}
    with ExitStack() as claims:
        for config in configs:
            try:
                if "first" in config.parents():
                    outcomes[config.path] = train(config, progress=progress, wait=False)
                    continue
                check_pair(config)
                for parent in config.parents().values():
                    _weights(parent, progress, wait=False)
                claims.enter_context(claim(config, wait=False))
                if record := finished(config):
                    outcomes[config.path] = record
            except TrainingError as error:
                outcomes[config.path] = error
        todo = [config for config in configs if config.path not in outcomes]
        if len({engine.in_step(config) for config in todo}) > 1:
            raise ConfigError(
                "these runs cannot be packed: they differ in data set, number of images, their size, batch size or precision"
            )
        outcomes |= {
            config.path: outcome
            for config, outcome in zip(todo, _fit(todo, progress) if todo else [], strict=True)
        }
    return [outcomes[config.path] for config in configs]


def finished(config: RunConfig) -> Record | None:
    """The record of a run that need not be trained. At `smoke` scale one whose loss, or a parent's, was edited is none."""
    record = records.find(config)
    return None if record is None or _outdated(record) else record


def _outdated(record: Record) -> bool:
    """Whether a run must be trained anew because code was edited: at `smoke` scale. At others a line says that it was."""
    config = record.config
    edited = record.loss_digest is not None and digest.of(config) not in (record.loss_digest, None)
    if config.preset != "smoke":
        if edited:
            _say_once(
                f"{config.path}: its loss was edited since it was trained; train(config, again=True) trains anew"
            )
        return False
    parents = {role: found for role, parent in config.parents().items() if (found := _find(parent))}
    return edited or any(
        record.parents.get(role, p.weights) != p.weights or _outdated(p)
        for role, p in parents.items()
    )


def _find(config: RunConfig) -> Record | None:
    """The record of a run, if it is there and can be read: a finished run needs no parents."""
    try:
        return records.find(config)
    except store.StoreError:
        return None


@functools.cache
def _say_once(message: str) -> None:
    tqdm.write(message)


def load_network(config: RunConfig) -> nn.Module:
    """The trained network of a finished run, in eval mode without gradient; for a factor auto-encoder, the auto-encoder."""
    tensors, _ = store.load_tensors(_weights(config))
    with torch.device(
        "meta"
    ):  # no values, so no random numbers: loaded or trained, the caller's stay the same
        if config.method == "factor-ae":
            channels = build_network(
                config.teacher, config
            ).feature_channels  # its weights do not matter
            network, prefix = (
                FactorAutoEncoder(channels, config.factor_ratio, config.decoder),
                "method.autoencoder.",
            )
        else:
            network, prefix = build_network(config.student, config), "student."
    state = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)


def load_run(config: RunConfig) -> Run:
    """All moving parts of a finished run at their trained values, in eval mode on the CPU: the student with the method's own encoders."""
    tensors, _ = store.load_tensors(_weights(config, progress=False))
    run = make_run(config)
    run.learner.load_state_dict(tensors)
    run.learner.eval()
    return run


def check_pair(config: RunConfig) -> None:
    """Refuse, before its teacher is trained, a pair whose features the method cannot compare. Raises `TrainingError`, and `ConfigError`
    for a last batch that cannot be normalised, or finite views whose teacher outputs would take too much space."""
    _check_last_batch(config)
    try:
        methods.compared(config)
    except PairError as error:
        raise TrainingError(
            f"{config.path}: {config.method} cannot compare {config.student} with {config.teacher}: {error}. "
            "Choose a pair with the same down-sampling."
        ) from None
    if config.views and config.has_teacher:
        views.shapes(config, len(data.load(config).train.labels))


def _check_last_batch(config: RunConfig) -> None:
    """Refuse a last batch of one image where a trained network has come down to one pixel: one value a channel has no variance."""
    images, size = data.image_count(config), config.batch_size
    trained = (
        [config.student, config.teacher]
        if config.is_mutual
        else [config.teacher if config.method == "factor-ae" else config.student]
    )
    small = [
        name for name in trained if networks.last_size(name, data.image_shape(config)) == (1, 1)
    ]
    if not small or images < 1 or (images - 1) % size:
        return
    rather = min(
        (other for other in range(2, images + 1) if images % other != 1),
        key=lambda other: abs(other - size),
        default=0,
    )
    ways = [f"batch_size: {rather}", f"train_images: {images - 1}"][: 2 if size > 1 else 1]
    ways = (
        ways if images > 1 else [f"train_images: 2 and batch_size: {max(size, 2)}"]
    )  # no batch size helps
    raise ConfigError(
        f"{config.path}: the last batch of an epoch has 1 image ({images} images, batch_size {size}), of which {small[0]} makes 1 value a "
        f"channel, and that cannot be normalised. Choose, for example, {' or '.join(ways)}."
    )


def make_run(
    config: RunConfig, device: torch.device | str = "cpu", dataset: data.DataSet | None = None
) -> Run:
    """The moving parts of a run at their initial values, its parents loaded (or trained first)."""
    parents = {role: load_network(parent) for role, parent in config.parents().items()}
    return engine.make_run(config, parents, torch.device(device), dataset)


@dataclass
class _Member:
    """One of the runs that are trained together, and how far it has come."""

    config: RunConfig
    parents: dict[str, str]  # role -> checksum
    run: Run
    started: str
    provenance: dict
    history: list[dict] = field(default_factory=list)
    seconds: float = 0.0  # its share of the time: a moment that n runs share counts 1/n for each
    saved: float = field(default_factory=time.monotonic)
    saving: float = 0.0  # seconds that the last checkpoint took

    @property
    def checkpoint(self) -> Path:
        return checkpoint.path_of(self.config)

    def resume(self) -> None:
        self.history, self.seconds = parallel.lead(
            checkpoint.resume, self.checkpoint, self.config, self.parents, self.run
        )
        parallel.align(checkpoint.state(self.run))

    def evaluate(self) -> dict[str, float | None]:
        """What is measured at the end of an epoch: the probe, and when it is due errors; training images in the last."""
        epoch, last = len(self.history) + 1, self.config.epochs
        parts = (
            ["validation", "test"]
            if epoch % self.config.evaluate_every == 0 or epoch == last
            else []
        )
        found = probe(self.run)
        for part in (*parts, "train") if epoch == last else parts:
            title = (
                "train_eval" if part == "train" else part
            )  # 'train_error' is that of the augmented batches
            found |= {
                f"{title}_{name}": value for name, value in engine.evaluate(self.run, part).items()
            }
        return found

    def keep(self, runs: int) -> None:
        """Write a checkpoint if it is time. Each of these runs waits while the others write theirs: many write less often."""
        wait = max(CHECKPOINT_SECONDS, runs * self.saving / CHECKPOINT_SHARE)
        parallel.lead(self._keep, parallel.highest(signals.number()) > 0, wait)

    def _keep(self, now: bool, wait: float) -> None:
        began = time.monotonic()
        if now or began - self.saved > wait:
            checkpoint.save(
                self.checkpoint, self.config, self.parents, self.run, self.history, self.seconds
            )
            self.saved = time.monotonic()
            self.saving = self.saved - began


def _fit(configs: Sequence[RunConfig], progress: bool) -> list[Record | TrainingError]:
    """Train runs to their end, or to the error that ends them. A run that resumes further on waits until the others have come as far."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    memory.keep()
    clock = time.monotonic()
    members = _begin(configs, device)
    step_all = (
        Graphed() if device.type == "cuda" and parallel.count() == 1 and graphs_wanted() else None
    )
    outcomes: dict[str, Record | TrainingError] = {}
    title = (
        f"{configs[0].pair} {configs[0].variant} seed {configs[0].seed}"
        if len(configs) == 1
        else f"{len(configs)} runs"
    )
    done = sum(len(m.history) for m in members)
    bar = tqdm(
        total=sum(c.epochs for c in configs),
        initial=done,
        desc=title,
        unit="epoch",
        disable=not progress or parallel.rank() > 0,
    )
    with bar, signals.deferred():
        while active := [m for m in members if m.config.path not in outcomes]:
            if number := parallel.highest(signals.number()):
                raise signals.Stopped(number)
            epoch = min(len(m.history) for m in active)
            together = [m for m in active if len(m.history) == epoch]
            rows = parallel.share(
                engine.train_epochs([(m.config, m.run) for m in together], epoch, step_all)
            )
            for member, row in zip(together, rows, strict=True):
                if isinstance(row, TrainingError):
                    outcomes[member.config.path] = row
                else:
                    member.history.append(row | member.evaluate())
            spent, clock = time.monotonic() - clock, time.monotonic()
            for member in together:
                member.seconds += spent / len(together)
            for member in (m for m in together if m.config.path not in outcomes):
                if epoch + 1 < member.config.epochs:
                    member.keep(len(together))
                else:
                    outcomes[member.config.path] = parallel.lead(_end, member)
            _show(bar, together, spent)
    return [outcomes[config.path] for config in configs]


def _begin(configs: Sequence[RunConfig], device: torch.device) -> list[_Member]:
    """The runs with all their parts on the device, at their last checkpoint; what they can share, they share."""
    clock = time.monotonic()
    provenance = records.provenance()  # what the code was when the runs began
    if len(configs) > 1:
        provenance = {**provenance, "device": {**provenance["device"], "packed": len(configs)}}
    if parallel.count() > 1:
        provenance = {
            **provenance,
            "device": {**provenance["device"], "processes": parallel.count()},
        }
    members: list[_Member] = []
    for config in configs:
        parents = {
            role: parallel.lead(records.find, parent).weights
            for role, parent in config.parents().items()
        }
        run = make_run(config, device, members[0].run.dataset if members else None)
        if config.views and run.teacher is not None:
            run = run._replace(stored=views.stored_outputs(config, run))
        parallel.spread(run)
        members.append(
            _Member(
                config, parents, run, datetime.now(UTC).isoformat(timespec="seconds"), provenance
            )
        )
        members[-1].resume()
    engine.share_teachers([member.run for member in members])
    for member in members:
        member.seconds += (time.monotonic() - clock) / len(members)
    return members


def _end(member: _Member) -> Record | TrainingError:
    try:
        record = finish(
            member.config,
            member.parents,
            member.run,
            member.history,
            member.seconds,
            member.started,
            member.provenance,
        )
    except TrainingError as error:
        return error
    member.checkpoint.unlink(missing_ok=True)
    return record


def _show(bar: tqdm, together: list[_Member], seconds: float) -> None:
    """Move the bar; a run alone shows its loss and errors."""
    images = sum(len(m.run.dataset.train.labels) for m in together)
    known = (together[0].history or [{}])[-1] if len(together) == 1 else {}
    shown = {k: f"{v:.3g}" for k, v in known.items() if k in ("loss", "train_error", "test_error")}
    bar.set_postfix(shown | {"img/s": f"{images / seconds:.0f}"})
    bar.update(len(together))


def _fetch(config: RunConfig) -> None:
    """Have the data set at hand: several processes shall not download it into one folder."""
    data.load(config)


def _weights(config: RunConfig, progress: bool = True, wait: bool = True) -> Path:
    """The weights file of a run, training the run if they are nowhere."""
    train(config, progress=progress, wait=wait)
    if path := parallel.lead(records.weights_at_hand, config):
        return path
    tqdm.write(
        f"{config.path}: its weights are not at hand; training it again; if they come out different, its record is replaced, "
        "unless others learned from it"
    )
    train(config, progress=progress, again=True, wait=wait)
    if path := parallel.lead(records.weights_at_hand, config):
        return path
    raise TrainingError(f"{config.path}: its weights could not be stored")
