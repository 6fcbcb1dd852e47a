"""Where a student and its halves look, and how many of their directions count: numbers for a run.

Of test images that are spread evenly over the test set, the same for every run. All choices are
ours; `relevance` and `neurons` define what is measured.

* `relevance_<x>`, `cam_<x>`: agreement of maps, see `relevance.compare`; `floor_<x>` and `ceiling`
  are what it is read against, see `relevance.floors`.
* `lost_<half>`: share of the half's score that is lost when what the *teacher* finds most relevant
  turns grey; `lost_random_<half>` with as much of the image drawn at random. It needs no map of the
  student.
* `left_<order>`: share of the teacher's own score that is left so, by order of deletion: what
  relevance or the class activation map finds first, the centre first, or at random. A map that
  leaves as much as random tells nothing.
* `active_`, `pca99_`, `participation_`, `ablation_<part>`: see `neurons.measure`; the parts are the
  student, its halves and the teacher.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iekd.analysis import neurons, relevance
from iekd.analysis.relevance import WHOLE, Parts
from iekd.data import augment
from iekd.training.run import Run

IMAGES, SAMPLES = 500, 2000  # for maps and deletions; for what is counted
# Of 8 x 8 tiles, what is deleted: as many as the three innermost rings of distance hold.
TILES, SHARE = 8, 12 / 64


def measure(
    run: Run, teacher: nn.Module, other: nn.Module | None, halves: Parts, seed: int
) -> dict[str, float | None]:
    """The numbers of this page for a finished run.

    `teacher` and `other`, another teacher for the ceiling, are plain networks in eval mode. Nothing
    is measured where a half has no channels, or the last features differ in height and width.
    """
    student, (images, labels) = run.learner["student"], sample(run, IMAGES)
    sizes = {tuple(net(images[:1]).feature.shape[2:]) for net in (student, teacher)}
    if len(sizes) > 1 or not all(len(part) for part in halves.values()):
        return {}

    box = relevance.corners(run.mean, run.std)
    found: dict[str, float | None] = {}
    found |= relevance.compare(student, teacher, images, labels, box, halves)
    known = relevance.floors(teacher, other or teacher, images, labels, box)
    for name in ("another image", "another class", "random last stage"):
        found[f"floor_{name.split()[-1]}"] = known[name]
    found["ceiling"] = known["another teacher"] if other else None
    found |= deletions(student, teacher, images, labels, box, halves, seed)

    images, labels = sample(run, SAMPLES)
    found |= neurons.measure(student, images, labels, {**WHOLE, **halves})
    found |= neurons.measure(teacher, images, labels, {"teacher": slice(None)})
    return found


def sample(run: Run, count: int) -> tuple[Tensor, Tensor]:
    """So many normalised test images and their labels, spread evenly over the test set."""
    split = run.dataset.test
    chosen = torch.linspace(0, len(split.labels) - 1, min(count, len(split.labels))).long()
    return augment.normalise(split.images[chosen], run.mean, run.std), split.labels[chosen]


def deletions(
    student: nn.Module,
    teacher: nn.Module,
    images: Tensor,
    labels: Tensor,
    box: relevance.Box,
    halves: Parts,
    seed: int,
) -> dict[str, float | None]:
    """`lost_` of the student's halves, and `left_` of the teacher."""
    drawn = torch.rand(images[:, 0].shape, generator=torch.Generator().manual_seed(seed))
    cells = relevance.cam(teacher, images, labels)["all"]
    orders = {
        "relevance": relevance.relevance(teacher, images, labels, box)["all"],
        "cam": F.interpolate(cells[:, None], images.shape[2:])[:, 0],
        "centre": relevance.centre(images),
        "random": drawn.to(images.device),
    }
    tile, found = max(1, images.shape[-1] // TILES), {}
    for name, order in orders.items():
        changed = relevance.delete(images, order, SHARE, tile)
        found[f"left_{name}"] = relevance.left(teacher, images, changed, labels)["all"]
        if name in ("relevance", "random"):
            prefix = "lost_" if name == "relevance" else "lost_random_"
            for half, kept in relevance.left(student, images, changed, labels, halves).items():
                found[prefix + half] = 1 - kept
    return found


@torch.no_grad()
def answers(run: Run, network: nn.Module) -> str:
    """What a network says of each test image: '.' if that is right, else the class.

    One character an image; of more than ten classes words with blanks between them.
    """
    split = run.dataset.test
    images = split.images.split(relevance.BATCH)
    said = [network(augment.normalise(part, run.mean, run.std)).logits.argmax(1) for part in images]
    wrong = torch.cat(said).ne(split.labels).tolist()
    words = [str(k) if bad else "." for k, bad in zip(torch.cat(said).tolist(), wrong, strict=True)]
    return ("" if network.head.out_features <= 10 else " ").join(words)
