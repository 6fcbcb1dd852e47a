"""`train(config)`: load the finished record, or resume the checkpoint, or train. The one loop of the book.

Read top to bottom: `train` finds out what is left to do, `_fit` runs the epochs, `train_epoch` and `step` do the work.
Order and augmentation of an epoch are functions of (seed, epoch) alone, drawn on the CPU, so a resumed run and a run on another
device see the same batches. Within an epoch nothing waits for the device: losses go to a tensor that is read once at its end.
"""

from __future__ import annotations

import ctypes
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn
from tqdm import tqdm

from iekd import augment, data, methods, networks, records, store
from iekd.config import RunConfig
from iekd.factor import FactorAutoEncoder
from iekd.networks import Output
from iekd.records import Metric, Record


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says where it stopped and what to do."""


CHECKPOINT_SECONDS = 2.0  # least time between two checkpoints, which are written at the end of an epoch

# ---------------------------------------------------------------------------------------------------------- the primitive


def train(config: RunConfig, *, progress: bool = True, again: bool = False) -> Record:
    """The record of a run: from its file if it is finished, else trained, from its last checkpoint if there is one.

    Parents (teacher, factor auto-encoder) are trained first, by the same call. `again` trains anew even if a record exists.
    Two processes that ask for the same run share it: the second waits and then loads the record.
    Raises `DataError`, `StoreError` or `TrainingError` with the cause and the way out; a killed run loses one epoch, or some seconds.
    """
    before = records.find(config)
    if before and not again:
        return before
    check_pair(config)
    for parent in config.parents().values():
        _weights(parent, progress)
    with _claim(config):
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
            network, prefix = _build(config.student, config), "student."
    network.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)})
    return network.eval().requires_grad_(False)


def check_pair(config: RunConfig) -> None:
    """Refuse, before its teacher is trained, a pair whose features a factor method cannot compare. Raises `TrainingError`."""
    if "autoencoder" not in config.parents():
        return
    images = data.load(config).train.images[:1].float()
    with torch.device("meta"), torch.no_grad():  # shapes only
        shapes = [tuple(_build(name, config).eval()(images.to("meta")).feature.shape[2:]) for name in (config.student, config.teacher)]
    if shapes[0] != shapes[1]:
        raise TrainingError(
            f"{config.path}: {config.method} compares features of equal height and width, but {config.student} gives {shapes[0]} and "
            f"{config.teacher} gives {shapes[1]}. Choose a pair with the same down-sampling."
        )


def load_run(config: RunConfig) -> Run:
    """All moving parts of a finished run at their trained values, in eval mode on the CPU: the student with the method's own encoders."""
    tensors, _ = store.load_tensors(_weights(config, progress=False))
    run = make_run(config, torch.device("cpu"))
    run.learner.load_state_dict(tensors)
    run.learner.eval()
    return run


# ---------------------------------------------------------------------------------------------------------- what a run is made of


class Teacher(nn.Module):
    """A frozen network, with the frozen encoder of its factor if the method has one. Always in eval mode, never with gradient."""

    def __init__(self, network: nn.Module, encoder: nn.Module | None):
        super().__init__()
        self.network, self.encoder = network, encoder
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Output:
        output = self.network(images)
        if self.encoder is not None:
            output.features["factor"] = self.encoder(output.feature)
        return output


class Run(NamedTuple):
    """The moving parts of a run. `learner` holds all that is trained: 'student' (if any) and 'method'."""

    learner: nn.ModuleDict
    teacher: Teacher | None
    optimiser: torch.optim.SGD
    dataset: data.DataSet
    mean: Tensor
    std: Tensor


def make_run(config: RunConfig, device: torch.device) -> Run:
    """Networks, method and optimiser of a configuration at their initial values. Every method starts from the same student weights."""
    dataset = data.load(config)
    parents = {role: load_network(parent) for role, parent in config.parents().items()}
    teacher, autoencoder = parents.get("teacher"), parents.get("autoencoder")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        student = None if config.student == "none" else _build(config.student, config)
        method = methods.build(config, student, teacher, autoencoder)
    learner = nn.ModuleDict({"method": method} if student is None else {"student": student, "method": method})
    learner.to(device, memory_format=torch.channels_last)
    frozen = None
    if teacher is not None:
        frozen = Teacher(teacher, autoencoder.encoder if autoencoder else None).to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(
        learner.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay, nesterov=config.momentum > 0, fused=True
    )  # fmt: skip
    mean, std = (torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (dataset.mean, dataset.std))
    splits = {name: _to(getattr(dataset, name), device) for name in ("train", "validation", "test")}
    return Run(learner, frozen, optimiser, dataset._replace(**splits), mean, std)


# ---------------------------------------------------------------------------------------------------------- the loop


def _fit(config: RunConfig, progress: bool) -> Record:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    _keep_memory()
    provenance = records.provenance()  # what the code was when the run began
    started, began = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    parents = {role: records.find(parent).weights for role, parent in config.parents().items()}
    run = make_run(config, device)
    checkpoint = store.cache_folder() / f"{config.path}.checkpoint.safetensors"
    history, spent = _resume(checkpoint, config, parents, run)
    saved, first = began, len(history)
    bar = tqdm(
        total=config.epochs, initial=first, desc=f"{config.pair} {config.variant} seed {config.seed}", unit="epoch", disable=not progress
    )
    with bar:
        for epoch in range(first, config.epochs):
            row = train_epoch(config, run, epoch)
            if (epoch + 1) % config.evaluate_every == 0 or epoch + 1 == config.epochs:
                row |= {f"{part}_{name}": value for part in ("validation", "test") for name, value in evaluate(run, part).items()}
            history.append(row)
            elapsed = time.monotonic() - began
            if time.monotonic() - saved > CHECKPOINT_SECONDS and epoch + 1 < config.epochs:  # a checkpoint costs milliseconds
                _save_checkpoint(checkpoint, config, parents, run, history, spent + elapsed)
                saved = time.monotonic()
            rate = (epoch + 1 - first) * len(run.dataset.train.labels) / elapsed
            bar.set_postfix(
                {k: f"{v:.3g}" for k, v in row.items() if k in ("loss", "train_error", "test_error")} | {"img/s": f"{rate:.0f}"}
            )
            bar.update()
    spent += time.monotonic() - began
    record = _finish(config, parents, run, history, spent, started, provenance)
    checkpoint.unlink(missing_ok=True)
    return record


def train_epoch(config: RunConfig, run: Run, epoch: int) -> dict[str, float]:
    """One pass over the training images; returns the epoch's mean loss, its terms, and the error in percent on the augmented batches."""
    images, labels, *_ = run.dataset.train
    order, draws = _draw_epoch(config, run.dataset, epoch)
    order, draws = order.to(labels.device), draws.to(labels.device)
    steps = math.ceil(len(labels) / config.batch_size)
    run.learner.train()
    log, names = [], []
    for i in range(steps):
        for group in run.optimiser.param_groups:
            group["lr"] = learning_rate(config, epoch + i / steps)
        batch = order[i * config.batch_size : (i + 1) * config.batch_size]
        views = images[batch]
        if config.augment == "standard":
            views = augment.crop_and_flip(views, draws.at(batch), run.dataset.pad)
        terms = step(run, augment.normalise(views, run.mean, run.std), labels[batch])
        names = list(terms)
        log.append(torch.stack([*terms.values()]))
    return _read_log(config, epoch, names, torch.stack(log), len(labels))


def step(run: Run, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """One update on a normalised batch (B, C, H, W). Returns detached loss terms and `train_error` (wrong answers / B), on the device."""
    images = images.contiguous(memory_format=torch.channels_last)
    teacher = run.teacher(images) if run.teacher is not None else None
    student = run.learner["student"](images) if "student" in run.learner else None
    terms = run.learner["method"](labels, student, teacher)
    run.optimiser.zero_grad()
    sum(terms.values()).backward()
    run.optimiser.step()
    wrong = {} if student is None else {"train_error": (student.logits.detach().argmax(1) != labels).float().mean()}
    return {name: term.detach() for name, term in terms.items()} | wrong


@torch.no_grad()
def evaluate(run: Run, part: str, batch_size: int = 1000) -> dict[str, float]:
    """Error in percent on a split ('error'; 'error_exact' without recompressed images), or an auto-encoder's mean loss ('loss')."""
    images, labels, exact = getattr(run.dataset, part)
    if len(labels) == 0:
        return {}
    run.learner.eval()
    results = []
    for pixels, answers in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        batch = augment.normalise(pixels, run.mean, run.std).contiguous(memory_format=torch.channels_last)
        if "student" in run.learner:
            results.append(run.learner["student"](batch).logits.argmax(1) != answers)
        else:
            results.append(sum(run.learner["method"](answers, None, run.teacher(batch)).values()).expand(len(answers)))
    result = torch.cat(results).float()
    if "student" not in run.learner:
        return {"loss": result.mean().item()}
    errors = {"error": 100 * result.mean().item()}
    return errors | ({"error_exact": 100 * result[exact].mean().item()} if exact is not None else {})


def learning_rate(config: RunConfig, epoch: float) -> float:
    """The rate at a point of the run, in epochs from its start; see `RunConfig.schedule`."""
    progress = epoch / config.epochs
    if config.schedule == "steps":
        return config.lr * (1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01)
    return config.lr * min(progress / 0.2, (1 - progress) / 0.8)


# ---------------------------------------------------------------------------------------------------------- small parts


def _draw_epoch(config: RunConfig, dataset: data.DataSet, epoch: int) -> tuple[Tensor, augment.Draws]:
    """Order of the images and their crops and flips in one epoch: the same for every method with this seed, on every device."""
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
    count = len(dataset.train.labels)
    return torch.randperm(count, generator=generator), augment.draw(count, dataset.pad, dataset.flip, generator)


def _read_log(config: RunConfig, epoch: int, names: list[str], log: Tensor, images: int) -> dict[str, float]:
    """The epoch's means from the per-step values (steps, terms): the only moment that waits for the device."""
    log = log.double().cpu()
    if not log.isfinite().all():
        at, term = (~log.isfinite()).nonzero()[0].tolist()
        raise TrainingError(
            f"{config.path}: the loss term '{names[term]}' became {log[at, term].item()} in step {at + 1} of epoch {epoch + 1}. "
            "Nothing was recorded; the last checkpoint is kept. Lower lr or the weight of that term (that is another run)."
        )
    sizes = torch.full((len(log),), config.batch_size, dtype=torch.double)
    sizes[-1] = images - config.batch_size * (len(log) - 1)
    means = dict(zip(names, ((log * sizes[:, None]).sum(0) / images).tolist(), strict=True))
    error = {"train_error": 100 * means.pop("train_error")} if "train_error" in means else {}
    return {"lr": learning_rate(config, epoch), "loss": sum(means.values()), **{f"loss_{k}": v for k, v in means.items()}, **error}


def _build(name: str, config: RunConfig) -> nn.Module:
    facts = data.FACTS[config.dataset]
    return networks.build(name, facts.num_classes, facts.channels)


def _to(split: data.Split, device: torch.device) -> data.Split:
    return data.Split(*(None if t is None else t.to(device) for t in split))


@contextmanager
def _claim(config: RunConfig) -> Iterator[None]:
    """Held by one process at a time while it trains this run; the system frees it if the process dies."""
    path = store.cache_folder() / f"{config.path}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            tqdm.write(f"{config.path}: another process trains this run; waiting for its record")
            lock.acquire()
    except OSError as error:
        raise store.StoreError(f"cannot write {path}: {error.strerror}. Set IEKD_RUNS to a folder that can be written.") from error
    with lock:
        lock.release()  # acquired twice: above and by `with`
        yield


def _weights(config: RunConfig, progress: bool = True) -> Path:
    """The weights file of a run, training the run if they are nowhere. Only a file that the record vouches for counts."""
    record = train(config, progress=progress)
    for _ in range(2):
        for path in filter(Path.exists, records.weights_paths(config)):
            if store.stored_checksum(path) == record.weights:
                return path
        tqdm.write(f"{config.path}: its weights are not at hand; training it again")
        record = train(config, progress=progress, again=True)
    raise TrainingError(f"{config.path}: its weights could not be stored")


# ---------------------------------------------------------------------------------------------------------- checkpoints and the end


def _state(run: Run) -> dict[str, Tensor]:
    """All that moves during training: weights, running statistics, and the optimiser's momentum by parameter name."""
    state = run.optimiser.state
    momentum = {f"momentum.{name}": state[p]["momentum_buffer"] for name, p in run.learner.named_parameters() if p in state}
    return {**run.learner.state_dict(), **{name: buffer for name, buffer in momentum.items() if buffer is not None}}


def _save_checkpoint(path: Path, config: RunConfig, parents: dict[str, str], run: Run, history: list[dict], seconds: float) -> None:
    facts = {"hash": config.hash, "parents": json.dumps(parents), "history": json.dumps(history), "seconds": str(seconds)}
    store.save_tensors(path, _state(run), facts)


def _resume(path: Path, config: RunConfig, parents: dict[str, str], run: Run) -> tuple[list[dict], float]:
    """Put a run back to its checkpoint; returns its history and the seconds spent. A checkpoint that is damaged, or of another run or
    other parents, is set aside, and said so: all is checked before anything of the run is touched."""
    if not path.exists():
        return [], 0.0
    try:
        tensors, metadata = store.load_tensors(path)
        if metadata["hash"] != config.hash or json.loads(metadata["parents"]) != parents:
            raise store.StoreError("it belongs to another run, or its teacher was trained again since")
        history, seconds = json.loads(metadata["history"]), float(metadata["seconds"])
        weights = {name: tensor for name, tensor in tensors.items() if not name.startswith("momentum.")}
        if {k: v.shape for k, v in weights.items()} != {k: v.shape for k, v in run.learner.state_dict().items()}:
            raise store.StoreError("its tensors are not those of this network")
        run.learner.load_state_dict(weights)
        for name, parameter in run.learner.named_parameters():
            if f"momentum.{name}" in tensors:
                buffer = torch.empty_like(parameter).copy_(tensors[f"momentum.{name}"])  # same memory format as the parameter
                run.optimiser.state[parameter]["momentum_buffer"] = buffer
        return history, seconds
    except (store.StoreError, KeyError, ValueError) as error:
        aside = path.with_suffix(".damaged")
        path.replace(aside)
        tqdm.write(f"{config.path}: the checkpoint cannot be used ({error}); set aside as {aside}, starting from the first epoch")
        return [], 0.0


def _finish(
    config: RunConfig, parents: dict[str, str], run: Run, history: list[dict], seconds: float, started: str, provenance: dict
) -> Record:
    """Store the weights, then the record: a record therefore always has its weights."""
    curves = {name: [row.get(name) for row in history] for name in dict.fromkeys(k for row in history for k in row)}
    weights = store.save_tensors(store.cache_folder() / f"{config.path}.safetensors", run.learner.state_dict(), {"hash": config.hash})
    record = Record(
        config=config, hash=config.hash, weights=weights, started=started, seconds=round(seconds, 1), parents=parents,
        images_per_second=round(len(history) * len(run.dataset.train.labels) / seconds, 1),
        data={"name": run.dataset.name, "checksum": run.dataset.checksum}, history=curves, metrics=_metrics(curves), **provenance,
    )  # fmt: skip
    record.save()
    return record


def _metrics(curves: dict[str, list[float | None]]) -> dict[str, Metric | None]:
    """The three selection rules: last epoch; lowest validation error; lowest test error (biased, for comparison only). Ties: the first."""

    def at(index: int) -> Metric:
        values = {name: curves.get(name, [None] * (index + 1))[index] for name in Metric.model_fields if name != "epoch"}
        return Metric(epoch=index + 1, **values)

    def best(name: str) -> Metric | None:
        known = [(value, i) for i, value in enumerate(curves.get(name, [])) if value is not None]
        return at(min(known)[1]) if known else None

    return {"last": at(len(curves["lr"]) - 1), "val_selected": best("validation_error"), "best_on_test": best("test_error")}


def _keep_memory() -> None:
    """Ask glibc to keep freed memory instead of giving it back after every step (up to a quarter faster on a CPU)."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-1, 2**30)  # M_TRIM_THRESHOLD
        libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD
    except (OSError, AttributeError):
        pass  # not glibc
