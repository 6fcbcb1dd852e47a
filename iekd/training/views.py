"""A finite set of augmented views and the teacher's output for each: computed once, reused by every
seed and method.

With `RunConfig.views` = V > 0 every training image has V random crops and flips, drawn once with
their own seed; each epoch shows one of them, drawn with the run's seed (`loop.draw_order`). The
teacher's outputs for all V x N views then fit in files: in `runs/cache/views`, in float16 (a
relative rounding of 0.05 %), one file per feature, at most `LIMIT` bytes per teacher.
"""

import hashlib
import json
import math
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from iekd import data, networks
from iekd.config import RunConfig, methods
from iekd.errors import ConfigError
from iekd.method.factor import factor_channels
from iekd.method.features import Batch
from iekd.networks import Output
from iekd.records import store
from iekd.training import loop
from iekd.training.run import Run
from iekd.training.teacher import Teacher

LIMIT = 2 * 2**30  # bytes of outputs that one run may need
BATCH = 500  # images per forward pass of the teacher


class StoredTeacher:
    """A teacher whose outputs for all views are stored: for a step's batch, they are looked up.

    `tensors` holds 'logits' and features by name, float16 (V * N, ...). For other images the
    teacher is run.
    """

    def __init__(self, config: RunConfig, teacher: Teacher, tensors: dict[str, Tensor]):
        self.config, self.teacher, self.tensors = config, teacher, tensors
        count, device = len(tensors["logits"]) // config.views, tensors["logits"].device
        self.rows = torch.zeros(count, dtype=torch.long, device=device)

    def begin(self, epoch: int) -> None:
        """Note which view of each image this epoch shows, in place: a CUDA graph reads it."""
        order, rows, _ = loop.draw_order(self.config, len(self.rows), epoch)
        self.rows.copy_(torch.empty_like(rows).index_copy_(0, order, rows))

    def __call__(self, images: Tensor, batch: Batch | None = None) -> Output:
        if batch is None:
            return self.teacher(images)
        rows = self.rows[batch.index]
        features = {name: tensor[rows].float() for name, tensor in self.tensors.items()}
        return Output(features.pop("logits"), features)


def with_stored_teacher(config: RunConfig, run: Run) -> Run:
    """The run with its teacher's stored outputs, which are computed now if missing or damaged.

    Two processes that need the same file compute it once. Raises `ConfigError` for values beyond
    float16, `StoreError` for a full disk.
    """
    kept = shapes(config, len(run.dataset.train.labels))
    folder = _folder(config, run)
    # one process computes, the others load
    with store.locked(folder / ".lock"):
        found = {name: _load(folder / f"{name}.safetensors", shape) for name, shape in kept.items()}
        tensors = {name: tensor for name, tensor in found.items() if tensor is not None}
        missing = {name: shape for name, shape in kept.items() if name not in tensors}
        made = compute(config, run, missing) if missing else {}
        for name, tensor in made.items():
            store.save_tensors(folder / f"{name}.safetensors", {name: tensor})
    tensors = {name: tensor.to(run.mean.device) for name, tensor in {**tensors, **made}.items()}
    return run._replace(teacher=StoredTeacher(config, run.teacher, tensors))


def shapes(config: RunConfig, images: int) -> dict[str, tuple[int, ...]]:
    """The shapes stored for all views of so many images, by name: the logits, and the features that
    the method needs.

    Raises `ConfigError` for more than `LIMIT` bytes in total, before anything is computed.
    """
    known = dict(networks.feature_shapes(config.teacher, data.image_shape(config)))
    channels, *size = [shape for name, shape in known.items() if name.startswith("stage")][-1]
    known["factor"] = (factor_channels(channels, config.factor_ratio), *size)
    known["logits"] = (data.FACTS[config.dataset].num_classes,)

    names = ("logits", *methods.needs(config))
    kept = {name: (config.views * images, *known[name]) for name in names}
    total = sum(2 * math.prod(shape) for shape in kept.values())
    if total > LIMIT:
        raise ConfigError(
            f"views: {config.views} is not usable; what {config.method} needs of the teacher "
            f"({', '.join(kept)}) would take {total / 2**30:.1f} GiB, at most "
            f"{LIMIT / 2**30:.0f} are kept; choose fewer views, or 0: the teacher computes in "
            "every step"
        )
    return kept


@torch.no_grad()
def compute(config: RunConfig, run: Run, missing: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The teacher's outputs for all views, by name, float16; `missing` are their shapes.

    Raises `ConfigError` for values beyond float16.
    """
    made = {name: torch.empty(shape, dtype=torch.half) for name, shape in missing.items()}
    count = len(run.dataset.train.labels)
    rows = torch.arange(config.views * count)
    plan = torch.stack([rows % count, *loop.draw_views(config, run.dataset)])
    for row, part in zip(rows.split(BATCH), plan.split(BATCH, dim=1), strict=True):
        images, _ = loop.take(config, run, part.to(run.mean.device), 0)
        output = run.teacher(images)
        for name, tensor in made.items():
            tensor[row] = (output.logits if name == "logits" else output.features[name]).to(tensor)

    broken = [name for name, tensor in made.items() if not tensor.isfinite().all()]
    if broken:
        raise ConfigError(
            f"views: the teacher's {broken[0]} exceeds the range of float16 (65504); choose 0, so "
            "that the teacher computes in every step"
        )
    return made


def _folder(config: RunConfig, run: Run) -> Path:
    """The folder of one teacher on one set of views, named by all that can change an output."""
    fields = ["dataset", "teacher", "train_images", "validation_images"]
    fields += ["image_size", "augment", "views", "precision"]
    facts = {name: getattr(config, name) for name in fields}
    facts |= {"data": run.dataset.checksum, "seed": loop.VIEW_SEED}
    text = json.dumps(facts, sort_keys=True) + store.checksum(run.teacher.state_dict())
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    name = f"{config.dataset}-{config.teacher}-views={config.views}-{digest}"
    return store.cache_folder() / "views" / name


def _load(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    """The tensor in a file; None if it is missing or damaged."""
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
