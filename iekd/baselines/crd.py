"""CRD: the student's embedding of an image is told apart from the teacher's embeddings of other
classes, and vice versa (Tian, Krishnan, Isola, "Contrastive representation distillation", ICLR
2020).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iekd.method import measures
from iekd.method.features import Batch
from iekd.method.registry import method
from iekd.networks import Output

SIZE = 128  # of the embeddings
TEMPERATURE = 0.1  # the paper's for CIFAR (RepDistiller's default is its ImageNet value, 0.07)
NEGATIVES = 16384  # N, the weight of all negatives together against the one positive
MOMENTUM = 0.5  # of the memory, as in the authors' code


class Head(nn.Linear):
    """Pooled features (B, channels) -> embeddings of norm 1 (B, SIZE), with a memory of one
    embedding per training image.
    """

    def __init__(self, channels: int, images: int):
        super().__init__(channels, SIZE)
        self.register_buffer("memory", measures.unit(torch.randn(images, SIZE)))

    def forward(self, pooled: Tensor) -> Tensor:
        return measures.unit(super().forward(pooled))

    @torch.no_grad()
    def remember(self, index: Tensor, embedding: Tensor) -> Tensor:
        """Move the memory of these images towards their embeddings, in place; returns what it was
        before (B, SIZE).
        """
        before = self.memory.index_select(0, index)
        self.memory.index_copy_(
            0, index, measures.unit(MOMENTUM * before + (1 - MOMENTUM) * embedding)
        )
        return before


@method(
    "crd",
    whole_batch=True,
    taught="teacher",
    fields=("crd_weight",),
    reads="pooled",
    build=lambda run, networks: CRD(
        networks.student.head.in_features,
        networks.teacher.head.in_features,
        networks.labels,
        run.crd_weight,
    ),
)
class CRD(nn.Module):
    """task = CE, crd = weight * (student against the teacher's memory + teacher against the
    student's), batch mean; weight 0.8.

    For an anchor x and its positive y: -log h(x, y) - N * mean over the negatives z of log(1 - h(x,
    z)), with the critic h = e^(x.y / tau) / (e^(x.y / tau) + N m). Negatives: images of another
    class. *Draws*: the paper draws N negatives per image from the memory; here all of it is used,
    the mean over every draw: one product (B, images) instead of a gather of (B, N, 128), no random
    numbers, and less noise. *Critic*: the paper writes e^(x.y / tau) for what is a probability in
    the underlying NCE, so that N / M (M images) takes the place of N m. Its authors' code divides
    by Z = M m, with the mean m estimated on the first batch, when the memory is still random. The
    expectation of m, e^(1 / (2 SIZE tau^2)), is used here. (Without Z the loss would start at N
    log(1 + M / N), about 20,000.) *Positives* come from the memory like the negatives, as in the
    authors' code. The paper's text only mentions negatives, but a positive from the current batch
    allows a cheat: on digits, all embeddings ran as one away from where the memory still was.
    """

    def __init__(self, student_channels: int, teacher_channels: int, labels: Tensor, weight: float):
        """`labels` (M,): the classes of the training images, in the order of `Batch.index`."""
        super().__init__()
        self.student, self.teacher = (
            Head(student_channels, len(labels)),
            Head(teacher_channels, len(labels)),
        )
        # part of the data, not of the state
        self.register_buffer("labels", labels.clone(), persistent=False)
        self.weight = weight

    def forward(self, batch: Batch, student: Output, teacher: Output) -> dict[str, Tensor]:
        ours, theirs = (
            self.student(student.features["pooled"]),
            self.teacher(teacher.features["pooled"]),
        )
        # The memory moves before it is used: the backward pass needs it unchanged after its use.
        our_past, their_past = (
            self.student.remember(batch.index, ours),
            self.teacher.remember(batch.index, theirs),
        )
        negative = self.labels != batch.labels[:, None]
        loss = contrast(ours, their_past, self.teacher.memory, negative) + contrast(
            theirs, our_past, self.student.memory, negative
        )
        return {"task": batch.goal(student), "crd": self.weight * loss}


def contrast(anchor: Tensor, positive: Tensor, memory: Tensor, negative: Tensor) -> Tensor:
    """Batch mean of -log h(positive) - N * mean over the negatives of log(1 - h): (B, SIZE) twice,
    (M, SIZE), and a mask (B, M).
    """
    others = F.softplus(log_odds(anchor @ memory.T))
    mean = torch.where(negative, others, 0).sum(1) / negative.sum(1).clamp(min=1)
    return (F.softplus(-log_odds((anchor * positive).sum(1))) + NEGATIVES * mean).mean()


def log_odds(cosine: Tensor) -> Tensor:
    """log(h / (1 - h)) of the critic."""
    return cosine / TEMPERATURE - math.log(NEGATIVES) - 1 / (2 * SIZE * TEMPERATURE**2)
