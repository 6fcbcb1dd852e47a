"""Where a student and its halves look, and how many of their directions count: numbers for a run.

Measured on test images spread evenly over the test set, the same for every run. All choices are
ours; `relevance` and `neurons` define the quantities.

* `relevance_<x>`, `cam_<x>`: agreement of maps, see `relevance.compare`; `floor_<x>` and `ceiling`
  are what to compare it with, see `relevance.floors`.
* `lost_<half>`: share of the half's score that is lost when what the *teacher* finds most relevant
  turns grey; `lost_random_<half>` if as much of the image, drawn at random, does. It needs no map
  of the student.
* `left_<order>`: share of the teacher's own score that is then left, by order of deletion: what
  relevance or the class activation map ranks first, the centre first, or at random. A map that
  leaves as much as random is uninformative.
* `active_`, `pca99_`, `participation_`, `ablation_<part>`: see `neurons.measure`; the parts are the
  student, its halves and the teacher.
"""

from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iekd.analysis import neurons, relevance
from iekd.analysis.relevance import WHOLE, Parts
from iekd.data import augment
from iekd.training.run import Run

IMAGES, SAMPLES = 500, 2000  # for maps and deletions; for counts
# Of 8 x 8 tiles, the share deleted: as many as in the three innermost rings of distance.
TILES, SHARE = 8, 12 / 64
SHARES = (0, 4 / 64, 8 / 64, SHARE, 16 / 64, 24 / 64, 32 / 64, 48 / 64, 1)  # of a curve


class Taught(NamedTuple):
    """The measurements of a teacher, made once for all of its students."""

    network: nn.Module  # in eval mode
    maps: dict[str, Tensor]  # of the sampled images, by kind
    numbers: dict[str, float | None]
    answers: str


def of_teacher(run: Run, network: nn.Module, other: nn.Module | None) -> Taught:
    """`run` has the images; `other` is another teacher, for the ceiling. Both in eval mode."""
    (images, labels), box = sample(run, IMAGES), relevance.corners(run.mean, run.std)
    maps = _maps(run, network, images, labels)
    found = relevance.floors(network, other, images, labels, box, maps["relevance"])
    for name, order in orders(maps, images).items():
        changed = grey(images, order, SHARE)
        found[f"left_{name}"] = relevance.left(network, images, changed, labels)["all"]
    found |= neurons.measure(network, *sample(run, SAMPLES), {"teacher": slice(None)})
    return Taught(network, maps, found, answers(run, network))


def measure(run: Run, taught: Taught, halves: Parts, seed: int) -> dict[str, float | None]:
    """The numbers of this page for a finished run.

    Nothing is measured if a half has no channels, or the last features differ in height and width.
    """
    student, (images, labels) = run.learner["student"], sample(run, IMAGES)
    sizes = {tuple(net(images[:1]).feature.shape[2:]) for net in (student, taught.network)}
    if len(sizes) > 1 or not all(len(part) for part in halves.values()):
        return {}

    box = relevance.corners(run.mean, run.std)
    found = taught.numbers | relevance.compare(student, taught.maps, images, labels, box, halves)
    found |= deletions(student, taught, images, labels, halves, seed)
    found |= neurons.measure(student, *sample(run, SAMPLES), {**WHOLE, **halves})
    return found


def sample(run: Run, count: int) -> tuple[Tensor, Tensor]:
    """`count` normalised test images and their labels, spread evenly over the test set."""
    split = run.dataset.test
    chosen = torch.linspace(0, len(split.labels) - 1, min(count, len(split.labels))).long()
    return augment.normalise(split.images[chosen], run.mean, run.std), split.labels[chosen]


def deletions(
    student: nn.Module, taught: Taught, images: Tensor, labels: Tensor, halves: Parts, seed: int
) -> dict[str, float]:
    """`lost_` of the student's halves, and `left_random` of its teacher."""
    found = {}
    for prefix, order in (
        ("lost_", taught.maps["relevance"]),
        ("lost_random_", at_random(images, seed)),
    ):
        changed = grey(images, order, SHARE)
        for half, kept in relevance.left(student, images, changed, labels, halves).items():
            found[prefix + half] = 1 - kept
    # the images with randomly deleted tiles
    found["left_random"] = relevance.left(taught.network, images, changed, labels)["all"]
    return found


def deletion_curve(run: Run, network: nn.Module, seed: int = 0) -> pd.DataFrame:
    """Share of a network's score that is left as more and more of the sampled images turns grey.

    Columns order, share and left: one row for each of `orders` and a random order with this `seed`,
    and each of `SHARES`.
    """
    images, labels = sample(run, IMAGES)
    by_order = orders(_maps(run, network, images, labels), images)
    by_order["random"] = at_random(images, seed)
    rows = []
    for name, order in by_order.items():
        for share in SHARES:
            changed = grey(images, order, share)
            kept = relevance.left(network, images, changed, labels)["all"]
            rows.append({"order": name, "share": share, "left": kept})
    return pd.DataFrame(rows)


def orders(maps: Mapping[str, Tensor], images: Tensor) -> dict[str, Tensor]:
    """The orders (N, H, W) in which an image can turn grey: by either kind of map, and centre
    first, which ignores the image.
    """
    cells = F.interpolate(maps["cam"][:, None], images.shape[2:])[:, 0]
    return {"relevance": maps["relevance"], "cam": cells, "centre": relevance.centre(images)}


def at_random(images: Tensor, seed: int) -> Tensor:
    """An order (N, H, W) drawn separately for each image."""
    return torch.rand(images[:, 0].shape, generator=torch.Generator().manual_seed(seed))


def grey(images: Tensor, order: Tensor, share: float) -> Tensor:
    """The images with a share of their tiles deleted, those that come first in `order`.

    Tiles are smaller and more numerous if `TILES` in a row do not fill the image.
    """
    side = images.shape[-1]
    tile = next(size for size in range(max(1, side // TILES), 0, -1) if side % size == 0)
    return relevance.delete(images, order, share, tile)


def _maps(run: Run, network: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The network's maps of images by kind."""
    maps = relevance.maps_of(network, images, labels, relevance.corners(run.mean, run.std))
    return {kind: parts["all"] for kind, parts in maps.items()}


@torch.no_grad()
def answers(run: Run, network: nn.Module) -> str:
    """A network's answer for each test image: '.' if it is right, else the class.

    One character per image; with more than ten classes, words separated by blanks.
    """
    split = run.dataset.test
    images = split.images.split(relevance.BATCH)
    said = [network(augment.normalise(part, run.mean, run.std)).logits.argmax(1) for part in images]
    wrong = torch.cat(said).ne(split.labels).tolist()
    words = [str(k) if bad else "." for k, bad in zip(torch.cat(said).tolist(), wrong, strict=True)]
    return ("" if network.head.out_features <= 10 else " ").join(words)
