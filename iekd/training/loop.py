"""The loop of one run: one epoch, one update, one evaluation.

Order and augmentation of an epoch are functions of (seed, epoch) alone, drawn on the CPU, so a
resumed run and a run on another device see the same batches. Within an epoch nothing waits for the
device: losses stay there until it ends. `iekd.training.pack` makes the same steps for several runs
at once.

`train` (`runner`) makes sure that parents are finished and calls `session`, which trains a run's
epochs with this loop, evaluates, writes checkpoints, and finally the record (`finish`).
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from iekd import data
from iekd.config import RunConfig
from iekd.data import augment, boxes
from iekd.errors import TrainingError
from iekd.method.features import Batch
from iekd.networks import Output
from iekd.training import detect
from iekd.training.run import Run

VIEW_SEED = 3579
STREAMED = 250  # images of a stream that are evaluated at once: they are large
SUFFIX = {"student": "", "peer": "_peer"}  # suffix of a network's measurements in the history


def train_epoch(config: RunConfig, run: Run, epoch: int) -> dict[str, float]:
    """One pass over the training images; `epoch` counts from 0. Returns its row of the history.

    That is the learning rate at its start, the mean loss and its terms, and the error in percent on
    the augmented batches. Raises `TrainingError` if a loss is no longer finite.
    """
    begin(run, epoch)
    plan = draw_epoch(config, run.dataset, epoch).to(run.mean.device)
    parts = plan.split(config.batch_size, dim=1)
    expect(run, parts)
    log = []
    for i, part in enumerate(parts):
        set_rate(run.optimiser, learning_rate(config, epoch + i / len(parts)))
        images, batch = take(config, run, part, epoch)
        log.append(step(run, images, batch))
    return epoch_means(config, run, epoch, log)


def begin(run: Run, epoch: int) -> None:
    """Before the first step of an epoch."""
    run.learner.train()
    for part in (run.learner["method"], run.teacher):
        if hasattr(part, "begin"):
            part.begin(epoch)


def draw_epoch(config: RunConfig, dataset: data.DataSet, epoch: int) -> Tensor:
    """The plan of an epoch, int64 (4, N) in the order of the steps: image, row, column and flip.

    The same for every method with this seed, on every device.
    """
    count = len(dataset.train.labels)
    order, rows, generator = draw_order(config, count, epoch)
    if config.views:
        draws = draw_views(config, dataset).at(rows)
    elif dataset.boxes:
        draws = boxes.draw(count, dataset.has_up, generator).at(order)
    else:
        draws = augment.draw(count, dataset.pad, dataset.flip, generator).at(order)
    plan = torch.stack([order, *draws])
    if config.augment == "none":
        plan[1:3], plan[3] = -1, 0  # for a stream: the centre crop
    return plan


def draw_order(config: RunConfig, count: int, epoch: int) -> tuple[Tensor, Tensor, torch.Generator]:
    """The images in the order of the steps, their rows in `draw_views`, and the generator."""
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
    order = torch.randperm(count, generator=generator)
    if not config.views:
        return order, order, generator
    chosen = torch.randint(config.views, (count,), generator=generator)
    return order, order + count * chosen, generator


def draw_views(config: RunConfig, dataset: data.DataSet) -> augment.Draws:
    """Crop and flip of all finite views, the same for all runs.

    View v of training image i is in row v * N + i.
    """
    generator = torch.Generator().manual_seed(VIEW_SEED)
    count = config.views * len(dataset.train.labels)
    return augment.draw(count, dataset.pad, dataset.flip, generator)


def expect(run: Run, parts: Sequence[Tensor]) -> None:
    """Tell a stream (images read from files) what `take` will ask for, so that it reads ahead."""
    if not isinstance(run.dataset.train.images, Tensor):
        run.dataset.train.images.expect(parts)


def take(config: RunConfig, run: Run, part: Tensor, epoch: int) -> tuple[Tensor, Batch]:
    """The images (B, C, H, W), normalised, of a part (4, B) of an epoch's plan, as a batch."""
    index, dy, dx, flip = part
    source, labels = run.dataset.train.images, run.dataset.train.labels[index]
    # a stream crops while it decodes
    pixels = source[index] if isinstance(source, Tensor) else source.next()
    draws = augment.Draws(dy, dx, flip.bool())
    if config.augment == "standard" and run.dataset.boxes:
        pixels, labels = boxes.turn(pixels, labels, draws)
    elif config.augment == "standard" and isinstance(source, Tensor):
        pixels = augment.crop_and_flip(pixels, draws, run.dataset.pad)
    images = augment.normalise(pixels, run.mean, run.std)
    return images, Batch(labels, index, epoch)


def step(run: Run, images: Tensor, batch: Batch) -> dict[str, Tensor]:
    """The update, or updates, of a normalised batch (B, C, H, W).

    Returns detached loss terms and `train_error` (wrong answers / B), on the device; a peer's names
    end in '_peer'.
    """
    log = {}
    for role, output, terms in updates(run, images, batch):
        # gradients become None, so the optimiser skips what this update does not reach
        run.optimiser.zero_grad()
        sum(terms.values()).backward()
        run.optimiser.step()
        if output is not None:
            terms = terms | mistakes(output, batch)
        for name, value in terms.items():
            log[name + SUFFIX[role]] = value.detach()
    return log


def mistakes(output: Output, batch: Batch) -> dict[str, Tensor]:
    """`train_error`: the fraction of wrong answers; empty for detectors."""
    if batch.labels.dim() > 1:
        return {}
    return {"train_error": (output.logits.detach().argmax(1) != batch.labels).float().mean()}


def updates(
    run: Run, images: Tensor, batch: Batch
) -> Iterator[tuple[str, Output | None, dict[str, Tensor]]]:
    """Role, output and loss terms of each update of a batch; after a `yield` the update is done."""
    method = run.learner["method"]
    if "peer" in run.learner:
        yield from method.updates(batch, images, run.learner["student"], run.learner["peer"])
        return
    teacher = run.teacher(images, batch) if run.teacher is not None else None
    student = run.learner["student"](images) if "student" in run.learner else None
    yield "student", student, method(batch, student, teacher)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of the next step; a rate on the device is filled in place, without waiting."""
    for group in optimiser.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def learning_rate(config: RunConfig, epoch: float) -> float:
    """The rate at a point of the run, in epochs from its start; see `RunConfig.schedule`."""
    progress = epoch / config.epochs
    if config.schedule == "onecycle":
        return config.lr * min(progress / 0.2, (1 - progress) / 0.8)
    if config.schedule == "30-60-90":
        return config.lr * 0.1 ** sum(progress >= drop for drop in (0.3, 0.6, 0.9))
    if progress < 0.5:
        return config.lr
    return config.lr * (0.1 if progress < 0.75 else 0.01)


def epoch_means(
    config: RunConfig, run: Run, epoch: int, log: Sequence[dict[str, Tensor]]
) -> dict[str, float]:
    """The epoch's row of the history from what its steps returned; see `means_of`."""
    values = torch.stack([torch.stack([*terms.values()]) for terms in log])
    # the only point that waits for the device
    return means_of(config, run, epoch, list(log[0]), values.double().cpu())


def means_of(
    config: RunConfig, run: Run, epoch: int, names: Sequence[str], values: Tensor
) -> dict[str, float]:
    """The epoch's row of the history from the values (steps, names), float64 on the CPU.

    Raises `TrainingError` for a value that is not finite.
    """
    if not values.isfinite().all():
        at, term = (~values.isfinite()).nonzero()[0].tolist()
        raise TrainingError(
            f"{config.path}: the loss term '{names[term]}' became {values[at, term].item()} in "
            f"step {at + 1} of epoch {epoch + 1}. Nothing was recorded; the last checkpoint is "
            "kept. Lower lr or the weight of that term (that is another run)."
        )

    # every image counts once, also in the last, smaller batch
    images = len(run.dataset.train.labels)
    sizes = torch.full((len(values),), config.batch_size, dtype=torch.double)
    sizes[-1] = images - config.batch_size * (len(values) - 1)
    means = dict(zip(names, ((values * sizes[:, None]).sum(0) / images).tolist(), strict=True))

    errors = {name: 100 * means.pop(name) for name in names if name.startswith("train_error")}
    terms = {f"loss_{name}": mean for name, mean in means.items()}
    if run.dataset.boxes and epoch == 0:
        # the terms of the first step: with factors of another size, a weight has another effect
        terms |= {f"start_{name}": values[0, i].item() for i, name in enumerate(names)}
    return {"lr": learning_rate(config, epoch), "loss": sum(means.values()), **terms, **errors}


@torch.no_grad()
def evaluate(run: Run, part: str, batch_size: int = 1000) -> dict[str, float]:
    """Error in percent on a split: 'error', and 'error_exact' without recompressed images; a peer's
    names end in '_peer'.

    For an auto-encoder, which has no student, its mean 'loss'. Empty for an empty split.
    """
    images, labels, exact = getattr(run.dataset, part)
    if len(labels) == 0:
        return {}
    if not isinstance(images, Tensor):
        batch_size = min(batch_size, STREAMED)
    run.learner.eval()
    if run.dataset.boxes and "student" in run.learner:
        return detect.measure(run, images, labels)
    found: dict[str, list[Tensor]] = {}
    for pixels, answers in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        for name, values in _scores(run, pixels, answers).items():
            found.setdefault(name, []).append(values)
    results = {name: torch.cat(values).float() for name, values in found.items()}
    if "loss" in results:
        return {"loss": results["loss"].mean().item()}

    errors = {name: 100 * wrong.mean().item() for name, wrong in results.items()}
    if exact is not None:
        for name, wrong in results.items():
            errors[name.replace("error", "error_exact")] = 100 * wrong[exact].mean().item()
    return errors


def _scores(run: Run, pixels: Tensor, answers: Tensor) -> dict[str, Tensor]:
    """By name, a value for each image: whether a network is wrong, or an auto-encoder's loss."""
    images = augment.normalise(pixels, run.mean, run.std)
    if "student" not in run.learner:
        terms = run.learner["method"](Batch(answers, answers), None, run.teacher(images))
        return {"loss": sum(terms.values()).expand(len(answers))}
    wrong = {}
    for role, suffix in SUFFIX.items():
        if role in run.learner:
            wrong[f"error{suffix}"] = run.learner[role](images).logits.argmax(1) != answers
    return wrong
