"""What a method's loss demands of the student, measured at the end of every epoch: columns
`probe_*` of a run's history.

It uses the first `IMAGES` training images (`OF_BOXES` for a detector), not augmented, as one batch
in training mode: with batch statistics, as the loss sees them. The running statistics are restored
afterwards, so a run is the same with and without its probe. Only methods that expose their `parts`
are probed: those with halves and, as a control, FT.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.nn.functional import relu

from iekd.data import augment
from iekd.method import measures
from iekd.method.features import Batch, Part, rolled
from iekd.networks import Output
from iekd.networks.common import finish
from iekd.training.loop import SUFFIX
from iekd.training.run import Run

IMAGES = 512
OF_BOXES = 64  # images with boxes: larger ones, each compared with thousands of default boxes


def probe(run: Run) -> dict[str, float | None]:
    """The columns for a run as it is now; those of a peer end in '_peer'. Empty without parts.

    For every loss term (`ft`, `inherit`, `explore`) at the last stage:
    `probe_share_*`     fraction of the compared factor's energy differing between images (`share`)
    `probe_negative_*`  fraction of its entries that are negative
    `probe_loss_*`      the weighted term
    `probe_rolled_*`    the term with every image's factor replaced by that of the preceding image
    `probe_mean_*`      the term with the mean factor of all images for each of them
    `probe_gradient_*`  length of its gradient on the student's last feature / cross-entropy's
    `probe_cka_*`       debiased CKA of its channels of that feature with the teacher's feature
    `probe_share_target`, `probe_negative_target`: the same for what the student is compared with.
    """
    method = run.learner["method"]
    if not hasattr(method, "parts"):
        return {}
    count = OF_BOXES if run.dataset.boxes else IMAGES
    pixels, labels = run.dataset.train.images[:count], run.dataset.train.labels[:count]
    images = augment.normalise(pixels, run.mean, run.std)
    found: dict[str, float | None] = {}
    with _as_in_training(run.learner):
        if "peer" not in run.learner:
            student = _tail(run.learner["student"], images)
            teacher = run.teacher(images)
            return _columns(method.parts(student, teacher), student, teacher, labels)
        outputs = {role: _tail(run.learner[role], images) for role in SUFFIX}
        for role, other in (("student", "peer"), ("peer", "student")):
            parts = method.parts(outputs[role], outputs[other], role)
            columns = _columns(parts, outputs[role], outputs[other], labels)
            found |= {name + SUFFIX[role]: value for name, value in columns.items()}
    return found


def share(factor: Tensor) -> Tensor:
    """Fraction of the energy of L2-normalised factors (B, ...) that differs between images:
    1 - ||mean of x^||^2.

    0 if all images have the same factor; about 1 - 1/B for factors that have nothing in common.
    """
    return 1 - measures.unit(factor).mean(0).square().sum()


@contextmanager
def _as_in_training(learner: nn.Module) -> Iterator[None]:
    """Training mode inside; outside, buffers (running statistics) and mode are as before."""
    before = {name: buffer.clone() for name, buffer in learner.named_buffers()}
    modes = {module: module.training for module in learner.modules()}
    learner.train()
    try:
        yield
    finally:
        for name, buffer in learner.named_buffers():
            buffer.copy_(before[name])
        for module, mode in modes.items():
            module.training = mode


def _tail(network: nn.Module, images: Tensor) -> Output:
    """The network's output, with a gradient that reaches back to its last stage and no further."""
    with torch.no_grad():
        features = dict(network(images).features)
    features.pop("pooled", None)
    last = [*features][-1]
    before = features[f"{last}_pre"].requires_grad_()
    features |= {f"{last}_pre": before, last: relu(before)}
    return network.tail(features) if hasattr(network, "tail") else finish(network.head, features)


def _columns(
    parts: dict[str, Part], student: Output, teacher: Output, labels: Tensor
) -> dict[str, float | None]:
    """The measurements of one network against its teacher."""
    lengths = _gradient_lengths(parts, student, labels)
    found: dict[str, Tensor] = {}
    for name, part in parts.items():
        with torch.no_grad():
            constant = part.student.mean(0, keepdim=True).expand_as(part.student)
            found |= {
                f"share_{name}": share(part.student),
                f"negative_{name}": (part.student < 0).float().mean(),
                f"loss_{name}": part.value,
                f"rolled_{name}": part.loss(rolled(part.student), part.target),
                f"mean_{name}": part.loss(constant, part.target),
                f"gradient_{name}": lengths[name] / lengths["task"],
                f"cka_{name}": measures.cka(part.raw(student), teacher.feature),
                "share_target": share(part.target),
                "negative_target": (part.target < 0).float().mean(),
            }
    if not found:
        return {}
    values = torch.stack([value.detach().double() for value in found.values()]).tolist()
    columns = {f"probe_{name}": value for name, value in zip(found, values, strict=True)}
    known = {name: value for name, value in columns.items() if math.isfinite(value)}
    return dict.fromkeys(columns) | known


def _gradient_lengths(parts: dict[str, Part], student: Output, labels: Tensor) -> dict[str, Tensor]:
    """Length of the gradient of each term, and of the cross-entropy ('task'), on the student's last
    feature.

    If a term reads the feature before its ReLU (IE-OD), on that. NaN for a term that reads an
    earlier stage.
    """
    terms = {"task": Batch(labels, labels).goal(student)}
    terms |= {name: part.value for name, part in parts.items()}
    last = [name for name in student.features if name.startswith("stage")][-1]
    for feature in (student.features[last], student.features[f"{last}_pre"]):
        gradients = {}
        for name, term in terms.items():
            (gradients[name],) = grad(term, feature, retain_graph=True, allow_unused=True)
        if all(gradient is not None for gradient in gradients.values()):
            break
    lengths = dict.fromkeys(gradients, torch.tensor(math.nan))
    for name, gradient in gradients.items():
        if gradient is not None:
            lengths[name] = gradient.norm()
    return lengths
