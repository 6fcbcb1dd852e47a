"""DML and IE-DML: two networks, both trained from scratch, teach each other.

DML: Zhang, Xiang, Hospedales, Lu, "Deep mutual learning", CVPR 2018. IE-DML replaces its divergence
by two opposite IE-KD processes. Our sources name it and its four steps, but the list of the steps
is lost: their order is our choice.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from iekd.method import features
from iekd.method.factor import FactorAE
from iekd.method.factor_transfer import IEFT
from iekd.method.features import Batch, Part
from iekd.method.measures import soft_divergence
from iekd.method.registry import method
from iekd.method.split import SPLIT
from iekd.networks import Output


@method(
    "dml",
    taught="peer",
    fields=("dml_weight",),
    build=lambda run, networks: DML(run.dml_weight),
    source="two networks, both from scratch, teach each other (Zhang, Xiang, Hospedales, Lu, "
    '"Deep mutual learning", CVPR 2018).',
)
class DML(nn.Module):
    """For each network: task = CE, dml = weight * KL(p_other || p_own) at temperature 1, batch
    mean; weight 1.

    The other's probabilities are constants. The networks are updated one after the other, and the
    second learns from the updated first (the paper's algorithm), through a fresh forward pass in
    training mode, so the first's BN statistics see every batch twice. IE-KD's code: 200 epochs,
    batch 64, rate divided by 10 at epochs 60, 120 and 180.
    """

    def __init__(self, weight: float):
        super().__init__()
        self.weight = weight

    def updates(
        self, batch: Batch, images: Tensor, student: nn.Module, peer: nn.Module
    ) -> Iterator[tuple[str, Output, dict[str, Tensor]]]:
        ours, theirs = student(images), peer(images)
        yield "student", ours, self.terms(batch, ours, theirs)
        with torch.no_grad():
            renewed = student(images)
        # the peer has not changed: its forward pass is still valid
        yield ("peer", theirs, self.terms(batch, theirs, renewed))

    def terms(self, batch: Batch, own: Output, other: Output) -> dict[str, Tensor]:
        divergence = soft_divergence(own.logits, other.logits.detach(), temperature=1)
        return {"task": batch.goal(own), "dml": self.weight * divergence}


Update = tuple[str, Output | None, dict[str, Tensor]]


@method(
    "ie-dml",
    taught="peer",
    fields=("factor_ratio", "reconstruction", "decoder", "inherit_weight", *SPLIT, "turns"),
    compares=features.last,
    source="two networks from scratch, each the other's teacher by inheritance and exploration: "
    "deep mutual learning whose divergence is replaced by two opposite IE-KD processes (our "
    "sources name it and its four steps, whose list is lost: their order is our choice).",
    build=lambda run, networks: IEDML(
        networks.student.feature_channels,
        networks.teacher.feature_channels,
        ratio=run.factor_ratio,
        decoder=run.decoder,
        reconstruction=run.reconstruction,
        inherit_weight=run.inherit_weight,
        explore_weight=run.explore_weight,
        split=run.split,
        split_ratio=run.split_ratio,
        seed=run.seed,
        turns=run.turns,
    ),
)
class IEDML(nn.Module):
    """Each network has an auto-encoder of its own feature, trained alongside it, and two halves
    that see the other's factor.

    Four updates per batch: the first network's auto-encoder; the second network with its two
    encoders (task, inherit, explore, as in IE-FT, L1); the second's auto-encoder; the first network
    with its two encoders. Whatever teaches is a constant, as its latest update left it. With
    `turns` 'epoch', each epoch makes only one of the four, in turn: give it four times the epochs.
    Networks and auto-encoders that teach stay in training mode (batch statistics; nothing here is
    ever frozen), and share optimiser and learning rate.
    """

    def __init__(
        self,
        channels: int,
        peer_channels: int,
        *,
        ratio: float,
        decoder: Literal["transposed", "conv"],
        reconstruction: Literal["l2", "l1"],
        inherit_weight: float,
        explore_weight: float,
        split: Literal["random", "halves"],
        split_ratio: float,
        seed: int,
        turns: Literal["batch", "epoch"],
    ):
        super().__init__()
        sizes = {"student": channels, "peer": peer_channels}
        self.autoencoders = nn.ModuleDict(
            {whose: FactorAE(size, ratio, decoder, reconstruction) for whose, size in sizes.items()}
        )
        weights = dict(
            inherit_weight=inherit_weight,
            explore_weight=explore_weight,
            split=split,
            ratio=split_ratio,
            seed=seed,
        )
        others = {"student": "peer", "peer": "student"}
        self.losses = nn.ModuleDict(
            {
                whose: IEFT(size, self._encoder(others[whose]), **weights)  # type: ignore[arg-type]
                for whose, size in sizes.items()
            }
        )
        self.turns = turns

    def _encoder(self, whose: str) -> nn.Module:
        return self.autoencoders[whose].autoencoder.encoder

    def updates(
        self, batch: Batch, images: Tensor, student: nn.Module, peer: nn.Module
    ) -> Iterator[Update]:
        ours, theirs = student(images), peer(images)
        yield from self._lesson(batch, 0, "student", ours, "peer", theirs)
        with torch.no_grad():
            renewed = peer(images)
        # the student has not changed: its forward pass is still valid
        yield from self._lesson(batch, 2, "peer", renewed, "student", ours)

    def _lesson(
        self, batch: Batch, number: int, teacher: str, told: Output, learner: str, output: Output
    ) -> Iterator[Update]:
        """Two of the four updates: the teacher's auto-encoder, then the learning network."""
        told = Output(
            told.logits.detach(), {name: value.detach() for name, value in told.features.items()}
        )
        if self._is_turn(number, batch.epoch):
            yield teacher, None, self.autoencoders[teacher](batch, None, told)
        if self._is_turn(number + 1, batch.epoch):
            with torch.no_grad():
                told.features["factor"] = self._encoder(teacher)(told.feature)
            yield learner, output, self.losses[learner](batch, output, told)

    def parts(self, own: Output, other: Output, learner: str = "student") -> dict[str, Part]:
        """What a network's halves compare with the factor of the other's feature, a constant."""
        with torch.no_grad():
            factor = self._encoder("peer" if learner == "student" else "student")(other.feature)
        return self.losses[learner].parts(
            own, Output(other.logits, {**other.features, "factor": factor})
        )

    def phase(self, epoch: int) -> int:
        return epoch % 4 if self.turns == "epoch" else 0

    def _is_turn(self, number: int, epoch: int) -> bool:
        return self.turns == "batch" or self.phase(epoch) == number
