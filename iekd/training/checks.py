"""Checks before training; each refusal says what to choose instead."""

from iekd import data, networks
from iekd.config import RunConfig, methods
from iekd.errors import ConfigError, TrainingError
from iekd.method import registry
from iekd.method.check import MeasureError, check_ordinary
from iekd.method.features import PairError
from iekd.training import detect, views


def check_pair(config: RunConfig) -> None:
    """Refuse a pair whose features the method cannot compare, before its teacher is trained.

    Raises `TrainingError`, and `ConfigError` for a last batch that cannot be normalised, or finite
    views whose teacher outputs would take too much space.
    """
    if data.has_boxes(config.dataset):
        detect.check_installed()
    _check_last_batch(config)
    if config.views and config.dataset in data.STREAMED:
        raise ConfigError(
            f"views: {config.views} is not usable; {config.dataset} is read from its files, with "
            "new crops in every epoch; choose 0"
        )
    _check_measures(config)
    try:
        pairs = methods.compared(config)
    except PairError as error:
        raise TrainingError(
            f"{config.path}: {config.method} cannot compare {config.student} with "
            f"{config.teacher}: {error}. Choose a pair with the same down-sampling."
        ) from None
    if config.method == "ie-ft":
        _check_target(config, pairs[-1].student_channels)
    if config.views and config.has_teacher:
        views.shapes(config, len(data.load(config).train.labels))


def _check_measures(config: RunConfig) -> None:
    """Refuse a reader's measure that cannot train anything."""
    for name in {config.inherit, config.explore} & registry.MEASURES.keys():
        measure = registry.MEASURES[name].function
        if not registry.is_ours(measure):
            try:
                check_ordinary(measure)
            except MeasureError as error:
                raise ConfigError(f"{name}: {error}; iekd.check_measure tries the rest") from None


def _check_target(config: RunConfig, channels: int) -> None:
    """Refuse an exploration target for a half without channels, or that is an empty half."""
    inheriting = round(config.split_ratio * channels)
    empty = {"shuffled": inheriting == channels, "inherit": inheriting == 0}
    if empty.get(config.explore_target):
        half = "exploring" if config.explore_target == "shuffled" else "inheriting"
        raise ConfigError(
            f"split_ratio: {config.split_ratio:g} leaves the {half} half none of the {channels} "
            f"channels, and explore_target {config.explore_target!r} needs it; choose another ratio"
        )


def check_shards(config: RunConfig, processes: int) -> None:
    """Refuse a run whose loss is not the mean of the losses of a batch's shards.

    Raises `ConfigError`.
    """
    row, named = methods.registered(config), (config.inherit, config.explore)
    measures = [registry.MEASURES[name] for name in named if name != "none"]
    shuffled = config.explore_target == "shuffled"
    whole = row.whole_batch or any(measure.whole_batch for measure in measures)
    if whole or shuffled or data.has_boxes(config.dataset):
        raise ConfigError(
            f"{config.path}: several processes cannot train this, because its loss needs all "
            "images of a batch at once, or several updates of it; start it without torchrun"
        )
    smallest = (data.image_count(config) % config.batch_size or config.batch_size) // processes
    if smallest < 2:
        raise ConfigError(
            f"batch_size: {config.batch_size} leaves a process {smallest} images of the last "
            "batch, and 2 is the least; choose another batch_size, or fewer processes"
        )


def _check_last_batch(config: RunConfig) -> None:
    """Refuse a last batch of one image where a trained network reduces it to one pixel.

    That leaves one value per channel, which has no variance.
    """
    images, size = data.image_count(config), config.batch_size
    if images < 1 or (images - 1) % size:
        return
    # An auto-encoder works at the teacher's last size.
    trained = [config.teacher if config.method == "factor-ae" else config.student]
    trained += [config.teacher] if config.is_mutual else []
    for name in trained:
        if networks.last_size(name, data.image_shape(config)) == (1, 1):
            raise ConfigError(
                f"{config.path}: the last batch of an epoch has 1 image ({images} images, "
                f"batch_size {size}), of which {name} makes 1 value a channel, and that cannot be "
                f"normalised. Choose, for example, {_other_batches(images, size)}."
            )


def _other_batches(images: int, size: int) -> str:
    """What to choose instead of a batch size that leaves one image."""
    # no batch size helps
    if images == 1:
        return f"train_images: 2 and batch_size: {max(size, 2)}"
    usable = [other for other in range(2, images + 1) if images % other != 1]
    nearest = min(usable, key=lambda other: abs(other - size))
    if size == 1:
        return f"batch_size: {nearest}"
    return f"batch_size: {nearest} or train_images: {images - 1}"
