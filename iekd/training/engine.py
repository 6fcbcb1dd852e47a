"""One update, one epoch, one evaluation: what happens on the device.

`make_run` puts the moving parts together, `train_epochs`, `lock_step` and `step` move them: any number of runs, one step of each after
the other. Order and augmentation of an epoch are functions of (seed, epoch) alone, drawn on the CPU, so a resumed run and a run on
another device see the same batches, and runs with one seed share them. Within an epoch nothing waits for the device: losses go to a
tensor that is read once at its end.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from iekd import data, networks
from iekd.config import RunConfig, methods
from iekd.data import augment
from iekd.errors import TrainingError
from iekd.method.features import Batch
from iekd.networks import Output
from iekd.records import store
from iekd.speed import precision
from iekd.training import views
from iekd.training.teacher import Teacher

SUFFIX = {"student": "", "peer": "_peer"}  # of what is measured on a network, in the history


class Run(NamedTuple):
    """The moving parts of a run. `learner` holds all that is trained: 'student' (if any), 'peer' (mutual learning) and 'method'."""

    learner: nn.ModuleDict
    teacher: Callable[[Tensor], Output] | None  # a Teacher, or what stands for it
    optimiser: torch.optim.SGD
    dataset: data.DataSet
    mean: Tensor
    std: Tensor
    stored: views.Stored | None = (
        None  # the teacher's outputs for finite views; then the teacher need not compute
    )


def make_run(
    config: RunConfig,
    parents: Mapping[str, nn.Module],
    device: torch.device,
    dataset: data.DataSet | None = None,
) -> Run:
    """Networks, method and optimiser of a configuration at their initial values. Every method starts from the same student weights.

    From now on this process computes in the run's precision (`precision.settle`). `parents` are the trained networks by role: 'teacher',
    'autoencoder'. `dataset` stands for the one that the configuration names. Raises `TrainingError` outside the main thread.
    """
    if (
        threading.current_thread() is not threading.main_thread()
    ):  # torch has one generator for all of them
        raise TrainingError(
            f"{config.path}: runs in threads would draw their initial weights from one another's seeds. Train several at once with "
            "iekd.training.runner.train_pack, or in processes: iekd sweep --jobs, or multiprocessing"
        )
    precision.settle(config.precision)
    dataset = dataset or data.load(config)
    teacher, autoencoder = parents.get("teacher"), parents.get("autoencoder")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        student = None if config.student == "none" else build_network(config.student, config)
        peer = build_network(config.teacher, config) if config.is_mutual else None
        method = methods.build(config, student, peer or teacher, autoencoder, dataset.train.labels)
    learner = nn.ModuleDict(
        {
            role: part
            for role, part in (("student", student), ("peer", peer), ("method", method))
            if part is not None
        }
    )
    learner.to(device, memory_format=torch.channels_last)
    frozen = None
    if teacher is not None:
        frozen = Teacher(
            teacher, autoencoder.encoder if autoencoder else None, config.precision == "bf16"
        ).place(device)
    rate = (
        torch.tensor(config.lr, device=device) if device.type == "cuda" else config.lr
    )  # a CUDA graph reads it from the device
    optimiser = torch.optim.SGD(
        learner.parameters(),
        rate,
        config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.momentum > 0,
        fused=True,
    )
    if config.momentum:  # zeros from the start: fused SGD cannot mix parameters that have had a gradient with those that get their first
        for parameter in learner.parameters():
            optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    mean, std = (
        torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (dataset.mean, dataset.std)
    )
    splits = {name: _to(getattr(dataset, name), device) for name in ("train", "validation", "test")}
    return Run(learner, frozen, optimiser, dataset._replace(**splits), mean, std)


Member = tuple[RunConfig, Run]


class Branches(Protocol):
    """Where the steps of a pack are made: `branch(k)` encloses that of run k, `join` comes after all of them."""

    def branch(self, k: int) -> AbstractContextManager: ...

    def join(self) -> None: ...


# One step of every member on part (K, 5, B) of the K plans of an epoch -> the names of each member's log, and all values in one row.
Step = Callable[[Sequence[Member], Tensor, int], tuple[list[list[str]], Tensor]]


def share_teachers(runs: Sequence[Run]) -> None:
    """From now on runs with the same teacher compute its output once for a batch that they share, and so do those with the same encoder
    with its factor."""
    groups: dict[str, list[Teacher]] = {}
    for run in runs:
        if isinstance(run.teacher, Teacher):
            groups.setdefault(store.checksum(run.teacher.network.state_dict()), []).append(
                run.teacher
            )
            if run.teacher.encoder is not None:
                run.teacher.code = f"factor of {store.checksum(run.teacher.encoder.state_dict())}"
    for teachers in groups.values():
        seen = {} if len(teachers) > 1 else None
        for teacher in teachers:
            teacher.seen = seen


def train_epoch(config: RunConfig, run: Run, epoch: int) -> dict[str, float]:
    """One pass over the training images; returns the epoch's mean loss, its terms, and the error in percent on the augmented batches.

    Raises `TrainingError` if a loss is no longer finite.
    """
    (row,) = train_epochs([(config, run)], epoch)
    if isinstance(row, TrainingError):
        raise row
    return row


def train_epochs(
    members: Sequence[Member], epoch: int, step_all: Step | None = None
) -> list[dict[str, float] | TrainingError]:
    """`train_epoch` of several runs in lock step, each exactly as alone; an error instead of a row for a run that failed.

    They must agree in `in_step`. `step_all` stands for `lock_step` (see iekd.training.graphs).
    """
    plans: dict[tuple, Tensor] = {}
    for config, run in members:
        begin(run, epoch)
        if (key := batches(config)) not in plans:
            plans[key] = draw_epoch(config, run.dataset, epoch)
    config, run = members[0]
    plan = torch.stack([*plans.values()]).to(run.mean.device)
    images = plan.shape[-1]
    steps = math.ceil(images / config.batch_size)
    names, log = [], []
    for i, part in enumerate(plan.split(config.batch_size, dim=-1)):
        for c, r in members:
            set_rate(r.optimiser, learning_rate(c, epoch + i / steps))
        names, row = (step_all or lock_step)(members, part, epoch)
        log.append(row)
    values = (
        torch.stack(log).double().cpu().split([len(n) for n in names], dim=1)
    )  # the only moment that waits for the device
    return [
        _read_log(c, epoch, n, v, images)
        for (c, _), n, v in zip(members, names, values, strict=True)
    ]


def begin(run: Run, epoch: int) -> None:
    """Before the first step of an epoch."""
    run.learner.train()
    if hasattr(method := run.learner["method"], "begin"):
        method.begin(epoch)


def in_step(config: RunConfig) -> tuple:
    """What runs must have in common to go in lock step: as many steps an epoch, and batches of one shape."""
    return (
        config.dataset,
        config.train_images,
        config.validation_images,
        config.image_size,
        config.batch_size,
        config.precision,
    )


def batches(config: RunConfig) -> tuple:
    """Runs that are equal in this see the same batches."""
    return *in_step(config), config.seed, config.augment, config.views


def lock_step(
    members: Sequence[Member], part: Tensor, epoch: int, branches: Branches | None = None
) -> tuple[list[list[str]], Tensor]:
    """One step of every run on part (K, 5, B) of the K different plans of an epoch; see `draw_epoch` and `step`.

    Runs with the same batches share their images, and a teacher's output if they share it. `branches`: see iekd.training.graphs.
    """
    order = list(dict.fromkeys(batches(config) for config, _ in members))
    first = {batches(config): (config, run) for config, run in reversed(members)}
    images = {key: prepare(*first[key], plan) for key, plan in zip(order, part, strict=True)}
    _look_ahead([(run, images[batches(config)]) for config, run in members])
    logs = []
    for k, (config, run) in enumerate(members):
        key = batches(config)
        index, place, *_ = part[order.index(key)]
        with branches.branch(k) if branches else nullcontext():
            if run.stored is not None:
                output = run.stored.at(place)
                run = run._replace(teacher=lambda _, output=output: output)
            logs.append(
                step(run, images[key], Batch(run.dataset.train.labels[index], index, epoch))
            )
    if branches:
        branches.join()
    return [list(log) for log in logs], torch.stack(
        [value for log in logs for value in log.values()]
    )


def _look_ahead(seeing: Sequence[tuple[Run, Tensor]]) -> None:
    """What runs share of their teachers is computed before the first of them makes its step."""
    sharing = [
        (run.teacher, images)
        for run, images in seeing
        if run.stored is None and getattr(run.teacher, "seen", None) is not None
    ]
    for teacher, _ in sharing:
        teacher.seen.clear()
    for teacher, images in sharing:
        teacher.look(images)


def prepare(config: RunConfig, run: Run, plan: Tensor) -> Tensor:
    """The normalised images (B, C, H, W) that a part of an epoch's plan (5, B) names."""
    index, _, dy, dx, flip = plan
    pixels = run.dataset.train.images[index]
    if config.augment == "standard":
        pixels = augment.crop_and_flip(pixels, augment.Draws(dy, dx, flip.bool()), run.dataset.pad)
    return augment.normalise(pixels, run.mean, run.std)


def step(run: Run, images: Tensor, batch: Batch) -> dict[str, Tensor]:
    """The update, or updates, of a normalised batch (B, C, H, W). Returns detached loss terms and `train_error` (wrong answers / B), on
    the device; the names of a peer's end in '_peer'."""
    log = {}
    for whose, output, terms in _updates(run, images, batch):
        run.optimiser.zero_grad()  # to None: the optimiser leaves alone what this update does not reach
        sum(terms.values()).backward()
        run.optimiser.step()
        wrong = (
            {}
            if output is None
            else {"train_error": (output.logits.detach().argmax(1) != batch.labels).float().mean()}
        )
        log |= {name + SUFFIX[whose]: value.detach() for name, value in (terms | wrong).items()}
    return log


def _updates(
    run: Run, images: Tensor, batch: Batch
) -> Iterator[tuple[str, Output | None, dict[str, Tensor]]]:
    """Whose, output and terms of each update of a batch; what comes after a `yield` sees it done."""
    method = run.learner["method"]
    if "peer" in run.learner:
        yield from method.updates(batch, images, run.learner["student"], run.learner["peer"])
        return
    teacher = run.teacher(images) if run.teacher is not None else None
    student = run.learner["student"](images) if "student" in run.learner else None
    yield "student", student, method(batch, student, teacher)


@torch.no_grad()
def evaluate(run: Run, part: str, batch_size: int = 1000) -> dict[str, float]:
    """Error in percent on a split ('error'; 'error_exact' without recompressed images; a peer's, '_peer'), or an auto-encoder's mean
    loss ('loss')."""
    images, labels, exact = getattr(run.dataset, part)
    if len(labels) == 0:
        return {}
    run.learner.eval()
    found: dict[str, list[Tensor]] = {}
    for pixels, answers in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        views = augment.normalise(pixels, run.mean, run.std)
        for role, suffix in SUFFIX.items():
            if role in run.learner:
                found.setdefault(f"error{suffix}", []).append(
                    run.learner[role](views).logits.argmax(1) != answers
                )
        if "student" not in run.learner:
            loss = sum(
                run.learner["method"](Batch(answers, answers), None, run.teacher(views)).values()
            )
            found.setdefault("loss", []).append(loss.expand(len(answers)))
    results = {name: torch.cat(values).float() for name, values in found.items()}
    if "loss" in results:
        return {"loss": results["loss"].mean().item()}
    errors = {name: 100 * wrong.mean().item() for name, wrong in results.items()}
    if exact is not None:
        errors |= {
            name.replace("error", "error_exact"): 100 * wrong[exact].mean().item()
            for name, wrong in results.items()
        }
    return errors


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """For the next step. A rate on the device is filled, without waiting for it, and only when it changes."""
    for group in optimiser.param_groups:
        if not isinstance(group["lr"], Tensor):
            group["lr"] = rate
        elif group.get("filled") != rate:
            group["lr"].fill_(rate)
            group["filled"] = rate


def learning_rate(config: RunConfig, epoch: float) -> float:
    """The rate at a point of the run, in epochs from its start; see `RunConfig.schedule`."""
    progress = epoch / config.epochs
    if config.schedule == "steps":
        return config.lr * (1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01)
    return config.lr * min(progress / 0.2, (1 - progress) / 0.8)


def draw_epoch(config: RunConfig, dataset: data.DataSet, epoch: int) -> Tensor:
    """The plan of an epoch, int64 (5, N) in the order of the steps: image, its place among the finite views, row, column and flip.

    The same for every method with this seed, on every device.
    """
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
    count = len(dataset.train.labels)
    order = torch.randperm(count, generator=generator)
    if config.views:
        place = order + count * torch.randint(config.views, (count,), generator=generator)
        draws = views.draw(config, dataset).at(place)
    else:
        place = order
        draws = augment.draw(count, dataset.pad, dataset.flip, generator).at(order)
    return torch.stack([order, place, *draws])


def _read_log(
    config: RunConfig, epoch: int, names: list[str], log: Tensor, images: int
) -> dict[str, float] | TrainingError:
    """The epoch's means from the per-step values (steps, terms), or what is wrong with them."""
    if not log.isfinite().all():
        at, term = (~log.isfinite()).nonzero()[0].tolist()
        return TrainingError(
            f"{config.path}: the loss term '{names[term]}' became {log[at, term].item()} in step {at + 1} of epoch {epoch + 1}. "
            "Nothing was recorded; the last checkpoint is kept. Lower lr or the weight of that term (that is another run)."
        )
    sizes = torch.full((len(log),), config.batch_size, dtype=torch.double)
    sizes[-1] = images - config.batch_size * (len(log) - 1)
    means = dict(zip(names, ((log * sizes[:, None]).sum(0) / images).tolist(), strict=True))
    errors = {name: 100 * means.pop(name) for name in names if name.startswith("train_error")}
    return {
        "lr": learning_rate(config, epoch),
        "loss": sum(means.values()),
        **{f"loss_{k}": v for k, v in means.items()},
        **errors,
    }


def build_network(name: str, config: RunConfig) -> nn.Module:
    facts = data.FACTS[config.dataset]
    network = networks.build(name, facts.num_classes, facts.channels)
    return precision.train_in_bf16(network) if config.precision == "bf16" else network


def _to(split: data.Split, device: torch.device) -> data.Split:
    return data.Split(*(None if t is None else t.to(device) for t in split))
