"""A finite set of augmented views, and what the teacher says of each: computed once, reused by every seed and method.

With `RunConfig.views` = V > 0 every training image has V random crops and flips, drawn once with a seed of their own; each epoch shows
one of them, which one is drawn with the run's seed. The teacher's outputs for all V x N views then fit in a file. It lies in
`runs/cache/views`, in float16 (a relative rounding of 0.05 %), one file per feature, at most `LIMIT` bytes a teacher.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from iekd import data, networks
from iekd.config import RunConfig, methods
from iekd.data import augment
from iekd.errors import ConfigError
from iekd.method.factor import factor_channels
from iekd.networks import Output
from iekd.records import store

if TYPE_CHECKING:
    from iekd.training import engine

SEED = 3579  # of the views: the same for all runs
LIMIT = 2 * 2**30  # bytes of the outputs that one run may ask for
BATCH = 500  # images a teacher sees at a time


def draw(config: RunConfig, dataset: data.DataSet) -> augment.Draws:
    """Crop and flip of all views; view v of training image i is at v * N + i."""
    generator = torch.Generator().manual_seed(SEED)
    return augment.draw(
        config.views * len(dataset.train.labels), dataset.pad, dataset.flip, generator
    )


class Stored(NamedTuple):
    """A teacher's outputs for all views, by name: 'logits' and features, float16 (V * N, ...)."""

    tensors: dict[str, Tensor]

    def at(self, place: Tensor) -> Output:
        """The teacher's output for some of the views, as float32."""
        picked = {name: tensor[place].float() for name, tensor in self.tensors.items()}
        return Output(picked.pop("logits"), picked)


def shapes(config: RunConfig, images: int) -> dict[str, tuple[int, ...]]:
    """What is kept of the teacher for all views of so many images, by name: the logits, and the features that the method needs.

    Raises `ConfigError` for more than `LIMIT` bytes in all; nothing is computed before.
    """
    count = config.views * images
    known = networks.feature_shapes(config.teacher, data.image_shape(config))
    channels, *size = [shape for name, shape in known.items() if name.startswith("stage")][-1]
    known = known | {"factor": (factor_channels(channels, config.factor_ratio), *size)}
    known = known | {"logits": (data.FACTS[config.dataset].num_classes,)}
    kept = {name: (count, *known[name]) for name in ("logits", *methods.needs(config))}
    total = sum(2 * math.prod(shape) for shape in kept.values())
    if total > LIMIT:
        raise ConfigError(
            f"views: {config.views} is not usable; what {config.method} needs of the teacher ({', '.join(kept)}) would take "
            f"{total / 2**30:.1f} GiB, at most {LIMIT / 2**30:.0f} are kept; choose fewer views, or 0: the teacher computes in every step"
        )
    return kept


def stored_outputs(config: RunConfig, run: engine.Run) -> Stored:
    """The outputs of a run's teacher for all views: from their files, or computed now and kept. A damaged file is made again.

    Two processes that ask for the same file make it once. Raises `ConfigError` for values beyond float16, `StoreError` for a full disk.
    """
    kept = shapes(config, len(run.dataset.train.labels))
    folder = _folder(config, run)
    with store.locked(folder / ".lock"):  # one process computes, the others load
        found = {name: _load(folder / f"{name}.safetensors", shape) for name, shape in kept.items()}
        missing = {name: kept[name] for name, tensor in found.items() if tensor is None}
        if missing:
            found |= compute(config, run, missing)
        for name in missing:
            store.save_tensors(folder / f"{name}.safetensors", {name: found[name]})
    return Stored({name: tensor.to(run.mean.device) for name, tensor in found.items()})


def _images(config: RunConfig, run: engine.Run, places: Tensor) -> Tensor:
    """The normalised views at these places."""
    index = places % len(run.dataset.train.labels)
    pixels = run.dataset.train.images[index.to(run.mean.device)]
    if config.augment == "standard":
        pixels = augment.crop_and_flip(
            pixels, draw(config, run.dataset).at(places).to(run.mean.device), run.dataset.pad
        )
    return augment.normalise(pixels, run.mean, run.std)


def _folder(config: RunConfig, run: engine.Run) -> Path:
    """One folder for one teacher (with its encoder) on one set of views; its name holds a digest of all that can change an output."""
    fields = (
        "dataset",
        "teacher",
        "train_images",
        "validation_images",
        "image_size",
        "augment",
        "views",
        "precision",
    )
    facts = {name: getattr(config, name) for name in fields} | {
        "data": run.dataset.checksum,
        "seed": SEED,
    }
    digest = hashlib.sha256(
        (json.dumps(facts, sort_keys=True) + store.checksum(run.teacher.state_dict())).encode()
    ).hexdigest()
    return (
        store.cache_folder()
        / "views"
        / f"{config.dataset}-{config.teacher}-views={config.views}-{digest[:12]}"
    )


def _load(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    if not path.exists():
        return None
    try:
        tensor = store.load_tensors(path)[0][path.stem]
        if tensor.shape == shape and tensor.dtype == torch.half:
            return tensor
    except (store.StoreError, KeyError):
        pass
    tqdm.write(f"{path} is damaged; making it again")
    return None


@torch.no_grad()
def compute(
    config: RunConfig, run: engine.Run, missing: dict[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """The teacher's outputs for all views, by name, float16; `missing` are their shapes. Raises `ConfigError` beyond float16."""
    made = {name: torch.empty(shape, dtype=torch.half) for name, shape in missing.items()}
    for places in torch.arange(config.views * len(run.dataset.train.labels)).split(BATCH):
        output = run.teacher(_images(config, run, places))
        for name, tensor in made.items():
            tensor[places[0] : places[-1] + 1] = (
                output.logits if name == "logits" else output.features[name]
            )
    if broken := [name for name, tensor in made.items() if not tensor.isfinite().all()]:
        raise ConfigError(
            f"views: the teacher's {broken[0]} goes beyond float16 (65504); choose 0: the teacher computes in every step"
        )
    return made
