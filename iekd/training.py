"""`train(config)`: load the finished record, or resume the checkpoint, or train. The one primitive of the book.

Read top to bottom: `train` finds out what is left to do, `_fit` runs the epochs (each is `engine.train_epoch`), `_finish` stores
what came out.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn
from tqdm import tqdm

from iekd import checkpoint, data, engine, methods, mutual, records, stopping, store, views
from iekd.config import RunConfig
from iekd.engine import Run, TrainingError, build_network
from iekd.factor import FactorAutoEncoder
from iekd.records import Metric, Record

CHECKPOINT_SECONDS = 2.0  # least time between two checkpoints, which are written at the end of an epoch


class Busy(TrainingError):
    """Another process trains this run now."""


def train(config: RunConfig, *, progress: bool = True, again: bool = False, wait: bool = True) -> Record:
    """The record of a run: from its file if it is finished, else trained, from its last checkpoint if there is one.

    Parents (teacher, factor auto-encoder) are trained first, by the same call. `again` trains anew even if a record exists.
    Two processes that ask for the same run share it: the second waits and then loads the record; without `wait` it raises `Busy`.
    Raises `DataError`, `StoreError` or `TrainingError` with the cause and the way out; a killed run loses one epoch, or some seconds.
    """
    before = records.find(config)
    if before and not again:
        return before
    if "first" in config.parents():  # the training of the first network leaves both records
        train(config.partner(), progress=progress, again=True, wait=wait)
        return records.find(config)
    check_pair(config)
    for parent in config.parents().values():
        _weights(parent, progress, wait)
    with claim(config, wait):
        record = records.find(config)
        if record and record != before:  # another process finished it while this one waited
            return record
        return _fit(config, progress)


def load_network(config: RunConfig) -> nn.Module:
    """The trained network of a finished run, in eval mode without gradient; for a factor auto-encoder, the auto-encoder."""
    tensors, _ = store.load_tensors(_weights(config))
    with torch.random.fork_rng(devices=[]):  # whether a run is loaded or trained, the caller's random numbers stay the same
        if config.method == "factor-ae":
            channels = load_network(config.teacher_run()).feature_channels
            network, prefix = FactorAutoEncoder(channels, config.factor_ratio, config.decoder), "method.autoencoder."
        else:
            network, prefix = build_network(config.student, config), "student."
    network.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)})
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
    for finite views whose teacher outputs would take too much space."""
    try:
        methods.compared(config)
    except methods.PairError as error:
        raise TrainingError(
            f"{config.path}: {config.method} cannot compare {config.student} with {config.teacher}: {error}. "
            "Choose a pair with the same down-sampling."
        ) from None
    if config.views and config.has_teacher:
        views.shapes(config, len(data.load(config).train.labels))


def make_run(config: RunConfig, device: torch.device | str = "cpu") -> Run:
    """The moving parts of a run at their initial values, its parents loaded (or trained first)."""
    return engine.make_run(config, {role: load_network(parent) for role, parent in config.parents().items()}, torch.device(device))


def _fit(config: RunConfig, progress: bool) -> Record:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    _keep_memory()
    provenance = records.provenance()  # what the code was when the run began
    started, began = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    parents = {role: records.find(parent).weights for role, parent in config.parents().items()}
    run = make_run(config, device)
    if config.views and run.teacher is not None:
        run = run._replace(stored=views.stored_outputs(config, run))
    saved_at = store.cache_folder() / f"{config.path}.checkpoint.safetensors"
    history, spent = checkpoint.resume(saved_at, config, parents, run)
    saved, first = began, len(history)
    bar = tqdm(
        total=config.epochs, initial=first, desc=f"{config.pair} {config.variant} seed {config.seed}", unit="epoch", disable=not progress
    )
    with bar, stopping.deferred():
        for epoch in range(first, config.epochs):
            stopping.check()
            row = engine.train_epoch(config, run, epoch)
            if (epoch + 1) % config.evaluate_every == 0 or epoch + 1 == config.epochs:
                row |= {f"{part}_{name}": value for part in ("validation", "test") for name, value in engine.evaluate(run, part).items()}
            history.append(row)
            elapsed = time.monotonic() - began
            due = stopping.asked() or time.monotonic() - saved > CHECKPOINT_SECONDS  # a checkpoint costs milliseconds
            if due and epoch + 1 < config.epochs:
                checkpoint.save(saved_at, config, parents, run, history, spent + elapsed)
                saved = time.monotonic()
            rate = (epoch + 1 - first) * len(run.dataset.train.labels) / elapsed
            bar.set_postfix(
                {k: f"{v:.3g}" for k, v in row.items() if k in ("loss", "train_error", "test_error")} | {"img/s": f"{rate:.0f}"}
            )
            bar.update()
    spent += time.monotonic() - began
    record = _finish(config, parents, run, history, spent, started, provenance)
    saved_at.unlink(missing_ok=True)
    return record


def _finish(
    config: RunConfig, parents: dict[str, str], run: Run, history: list[dict], seconds: float, started: str, provenance: dict
) -> Record:
    """Store the weights, then the record: a record therefore always has its weights. Of two networks, the record of the first is last.

    Raises `TrainingError` for weights that the last update made infinite, which no later loss would show.
    """
    state = run.learner.state_dict()
    if broken := [name for name, tensor in state.items() if not tensor.isfinite().all()]:
        raise TrainingError(f"{config.path}: the last step made '{broken[0]}' infinite. Nothing was recorded; lower lr or the weights.")
    curves = {name: [row.get(name) for row in history] for name in dict.fromkeys(k for row in history for k in row)}
    facts = dict(
        started=started, seconds=round(seconds, 1), images_per_second=round(len(history) * len(run.dataset.train.labels) / seconds, 1),
        data={"name": run.dataset.name, "checksum": run.dataset.checksum}, **provenance,
    )  # fmt: skip
    weights = _save_weights(config, state)
    if config.is_mutual:
        partner, swapped = config.partner(), mutual.swap_curves(curves)
        _record(partner, _save_weights(partner, mutual.swap_state(state)), {"first": weights}, swapped, facts).save()
    record = _record(config, weights, parents, curves, facts)
    record.save()
    return record


def _save_weights(config: RunConfig, state: dict[str, Tensor]) -> str:
    return store.save_tensors(store.cache_folder() / f"{config.path}.safetensors", state, {"hash": config.hash})


def _record(config: RunConfig, weights: str, parents: dict[str, str], curves: dict[str, list], facts: dict) -> Record:
    return Record(config=config, hash=config.hash, weights=weights, parents=parents, history=curves, metrics=_metrics(curves), **facts)


def _metrics(curves: dict[str, list[float | None]]) -> dict[str, Metric | None]:
    """The three selection rules: last epoch; lowest validation error; lowest test error (biased, for comparison only). Ties: the first."""

    def at(index: int) -> Metric:
        values = {name: curves.get(name, [None] * (index + 1))[index] for name in Metric.model_fields if name != "epoch"}
        return Metric(epoch=index + 1, **values)

    def best(name: str) -> Metric | None:
        known = [(value, i) for i, value in enumerate(curves.get(name, [])) if value is not None]
        return at(min(known)[1]) if known else None

    return {"last": at(len(curves["lr"]) - 1), "val_selected": best("validation_error"), "best_on_test": best("test_error")}


@contextmanager
def claim(config: RunConfig, wait: bool = True) -> Iterator[None]:
    """Held by one process at a time while it trains this run; the system frees it if the process dies.

    Raises `Busy` if another process holds it and this one shall not wait.
    """
    path = store.cache_folder() / f"{config.path}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not wait:
                raise Busy(f"{config.path}: another process trains this run") from None
            tqdm.write(f"{config.path}: another process trains this run; waiting for its record")
            lock.acquire()
    except OSError as error:
        raise store.StoreError(f"cannot write {path}: {error.strerror}. Set IEKD_RUNS to a folder that can be written.") from error
    with lock:
        lock.release()  # acquired twice: above and by `with`
        yield


def _weights(config: RunConfig, progress: bool = True, wait: bool = True) -> Path:
    """The weights file of a run, training the run if they are nowhere."""
    train(config, progress=progress, wait=wait)
    if path := records.weights_at_hand(config):
        return path
    tqdm.write(f"{config.path}: its weights are not at hand; training it again, which replaces its record")
    train(config, progress=progress, again=True, wait=wait)
    if path := records.weights_at_hand(config):
        return path
    raise TrainingError(f"{config.path}: its weights could not be stored")


def _keep_memory() -> None:
    """Ask glibc to keep freed memory instead of giving it back after every step (up to a quarter faster on a CPU)."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-1, 2**30)  # M_TRIM_THRESHOLD
        libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD
    except (OSError, AttributeError):
        pass  # not glibc
