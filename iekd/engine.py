"""One update, one epoch, one evaluation: what happens on the device.

`make_run` puts the moving parts together, `train_epoch` and `step` move them. Order and augmentation of an epoch are functions of
(seed, epoch) alone, drawn on the CPU, so a resumed run and a run on another device see the same batches. Within an epoch nothing
waits for the device: losses go to a tensor that is read once at its end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from iekd import augment, data, methods, networks
from iekd.config import RunConfig
from iekd.methods import Batch
from iekd.networks import Output


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says where it stopped and what to do."""


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


def make_run(config: RunConfig, parents: Mapping[str, nn.Module], device: torch.device) -> Run:
    """Networks, method and optimiser of a configuration at their initial values. Every method starts from the same student weights.

    `parents` are the trained networks by role: 'teacher', 'autoencoder'.
    """
    dataset = data.load(config)
    teacher, autoencoder = parents.get("teacher"), parents.get("autoencoder")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        student = None if config.student == "none" else build_network(config.student, config)
        method = methods.build(config, student, teacher, autoencoder)
    learner = nn.ModuleDict({"method": method} if student is None else {"student": student, "method": method})
    learner.to(device, memory_format=torch.channels_last)
    frozen = None
    if teacher is not None:
        frozen = Teacher(teacher, autoencoder.encoder if autoencoder else None).to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(
        learner.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay, nesterov=config.momentum > 0, fused=True
    )  # fmt: skip
    if config.momentum:  # zeros from the start: fused SGD cannot mix parameters that have had a gradient with those that get their first
        for parameter in learner.parameters():
            optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    mean, std = (torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (dataset.mean, dataset.std))
    splits = {name: _to(getattr(dataset, name), device) for name in ("train", "validation", "test")}
    return Run(learner, frozen, optimiser, dataset._replace(**splits), mean, std)


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
        terms = step(run, augment.normalise(views, run.mean, run.std), Batch(labels[batch], batch, epoch))
        names = list(terms)
        log.append(torch.stack([*terms.values()]))
    return _read_log(config, epoch, names, torch.stack(log), len(labels))


def step(run: Run, images: Tensor, batch: Batch) -> dict[str, Tensor]:
    """One update on a normalised batch (B, C, H, W). Returns detached loss terms and `train_error` (wrong answers / B), on the device."""
    images = images.contiguous(memory_format=torch.channels_last)
    teacher = run.teacher(images) if run.teacher is not None else None
    student = run.learner["student"](images) if "student" in run.learner else None
    terms = run.learner["method"](batch, student, teacher)
    run.optimiser.zero_grad()  # to None: what a method leaves out of its terms in this epoch does not move, not even by weight decay
    sum(terms.values()).backward()
    run.optimiser.step()
    wrong = {} if student is None else {"train_error": (student.logits.detach().argmax(1) != batch.labels).float().mean()}
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
            results.append(sum(run.learner["method"](Batch(answers, answers), None, run.teacher(batch)).values()).expand(len(answers)))
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


def build_network(name: str, config: RunConfig) -> nn.Module:
    facts = data.FACTS[config.dataset]
    return networks.build(name, facts.num_classes, facts.channels)


def _to(split: data.Split, device: torch.device) -> data.Split:
    return data.Split(*(None if t is None else t.to(device) for t in split))
