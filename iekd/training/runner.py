"""`train(config)`: load the finished record, resume the checkpoint, or train. The one primitive of
the book.

`train` finds out what is left to do, and `iekd.training.session` does it: epochs, each with
`loop.train_epoch`, checkpoints, and the record at the end. `train_pack` does the same for several
runs at once, each of which ends as it would alone.
"""

import functools
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from iekd import data, records
from iekd.config import RunConfig
from iekd.errors import ConfigError, TrainingError
from iekd.method.factor import FactorAutoEncoder
from iekd.records import Record, store
from iekd.speed import precision
from iekd.training import ddp, digest, given, pack, session, views
from iekd.training.checks import check_pair, check_shards
from iekd.training.locks import claim
from iekd.training.run import Run, build_network, build_run


def train(
    config: RunConfig, *, progress: bool = True, again: bool = False, wait: bool = True
) -> Record:
    """The record of a run: loaded if it is finished, else trained or resumed.

    Parents (teacher, factor auto-encoder) are trained first, by the same call. `again` trains from
    scratch even if a record exists. Two processes can ask for the same run: the second waits and
    then loads the record; without `wait` it raises `Busy`. Raises `DataError`, `StoreError` or
    `TrainingError` with the cause and the way out. A killed run loses one epoch, or a few seconds.
    """
    if not isinstance(config, RunConfig):
        raise ConfigError(
            "train takes a configuration, for example RunConfig.create(method='kd'), not "
            f"{config!r}"
        )
    before = records.find(config)
    if before and config.is_given:
        given.refuse_other(before)
    if before and not again and not _is_outdated(before):
        return before

    # training the first network writes the records of both
    if "first" in config.parents():
        train(config.partner(), progress=progress, again=True, wait=wait)
        return records.find(config)  # type: ignore[return-value]

    _check(config)
    for parent in config.parents().values():
        _weights(parent, progress, wait)
    with claim(config, wait):
        record = records.find(config)
        # another process finished it while this one waited
        if record and record != before:
            return record
        (outcome,) = fit([config], progress)
    if isinstance(outcome, TrainingError):
        raise outcome
    return outcome


def train_pack(
    configs: Sequence[RunConfig], *, progress: bool = True
) -> list[Record | TrainingError]:
    """`train` for several runs at once, in lock step: they share images and teachers.

    All runs must share the settings that `pack.in_step` returns. Missing parents are trained first,
    one at a time. Each entry of the result is a record, `Busy` if another process is training that
    run, or a `TrainingError` if it failed; a failure does not stop the others.
    """
    outcomes: dict[str, Record | TrainingError] = {}
    with ExitStack() as claims:
        for config in configs:
            try:
                record = _ready(config, claims, progress)
            except TrainingError as error:
                outcomes[config.path] = error
                continue
            if record:
                outcomes[config.path] = record

        todo = [config for config in configs if config.path not in outcomes]
        if len({pack.in_step(config) for config in todo}) > 1:
            raise ConfigError(
                "these runs cannot be packed: they differ in data set, number of images, their "
                "size, batch size or precision"
            )
        if todo:
            paths = [config.path for config in todo]
            outcomes |= zip(paths, fit(todo, progress), strict=True)
    return [outcomes[config.path] for config in configs]


def _ready(config: RunConfig, claims: ExitStack, progress: bool) -> Record | None:
    """Claim a run of a pack, its parents trained; its record if nothing is left to train."""
    if "first" in config.parents():
        return train(config, progress=progress, wait=False)
    _check(config)
    for parent in config.parents().values():
        _weights(parent, progress, wait=False)
    claims.enter_context(claim(config, wait=False))
    return finished(config)


@precision.undisturbed()
def fit(configs: Sequence[RunConfig], progress: bool) -> list[Record | TrainingError]:
    """Train runs with finished parents, from their last checkpoints to their records."""
    return session.Session(configs, make_training_run, progress).train()


def follow() -> None:
    """What the other processes of torchrun do while the first one trains a run."""
    ddp.follow(lambda config: make_training_run(config, session.this_device()))


def _check(config: RunConfig) -> None:
    check_pair(config)
    if ddp.count() > 1:
        check_shards(config, ddp.count())


# ---------------------------------------------------------------------- what is finished


def finished(config: RunConfig) -> Record | None:
    """The record of a run that need not be trained.

    At `smoke` scale, None if its loss or a parent's was edited.
    """
    record = records.find(config)
    return None if record is None or _is_outdated(record) else record


def _is_outdated(record: Record) -> bool:
    """Whether a run must be trained again because code was edited: only at `smoke` scale.

    At other scales, a message says that it was edited.
    """
    config = record.config
    if config.preset != "smoke":
        if digest.is_edited(record):
            _say_once(
                f"{config.path}: its loss has been edited since it was trained; train(config, "
                "again=True) retrains it"
            )
        return False
    if digest.is_void(record):
        return True
    for role, parent in config.parents().items():
        # a finished run needs no parents
        with suppress(store.StoreError):
            found = records.find(parent)
            if found and record.parents.get(role, found.weights) != found.weights:
                return True
            if found and _is_outdated(found):
                return True
    return False


@functools.cache
def _say_once(message: str) -> None:
    tqdm.write(message)


# ---------------------------------------------------------------------- trained networks


def load_network(config: RunConfig) -> nn.Module:
    """The trained network of a finished run, in eval mode without gradients.

    For a factor auto-encoder, the auto-encoder.
    """
    tensors, _ = store.load_tensors(_weights(config, progress=False))
    # no values, so no random numbers: the caller's stay the same, whether it is loaded or trained
    with torch.device("meta"):
        alone = config.method == "factor-ae"
        prefix = "method.autoencoder." if alone else "student."
        network = build_network(config.teacher if alone else config.student, config)
        if alone:
            channels = network.feature_channels
            network = FactorAutoEncoder(channels, config.factor_ratio, config.decoder)
    own = [name for name in tensors if name.startswith(prefix)]
    state = {name.removeprefix(prefix): tensors[name] for name in own}
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)


@precision.undisturbed()
def load_run(config: RunConfig) -> Run:
    """All moving parts of a finished run at their trained values, in eval mode on the CPU."""
    tensors, _ = store.load_tensors(_weights(config, progress=False))
    loaded = make_run(config)
    loaded.learner.load_state_dict(tensors)
    loaded.learner.eval()
    return loaded


def make_run(
    config: RunConfig, device: torch.device | str = "cpu", dataset: data.DataSet | None = None
) -> Run:
    """The moving parts of a run at their initial values, its parents loaded (or trained first)."""
    parents = {role: load_network(parent) for role, parent in config.parents().items()}
    return build_run(config, parents, torch.device(device), dataset)


def make_training_run(
    config: RunConfig, device: torch.device | str = "cpu", dataset: data.DataSet | None = None
) -> Run:
    """`make_run` with the stored outputs of the teacher, for a run with finite views."""
    made = make_run(config, device, dataset)
    if config.views and made.teacher is not None:
        return views.with_stored_teacher(config, made)
    return made


def _weights(config: RunConfig, progress: bool = True, wait: bool = True) -> Path:
    """The weights file of a run, which is trained if they are not found."""
    train(config, progress=progress, wait=wait)
    if path := records.weights_at_hand(config):
        return path
    tqdm.write(
        f"{config.path}: its weights are missing, so it is trained again; if they come out "
        "different, its record is replaced, unless other runs learned from it"
    )
    train(config, progress=progress, again=True, wait=wait)
    if path := records.weights_at_hand(config):
        return path
    raise TrainingError(f"{config.path}: its weights could not be stored")
