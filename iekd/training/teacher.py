"""The frozen network that a student learns from, in the form that is fastest to ask."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from iekd.networks import Output
from iekd.speed import precision
from iekd.speed.fold import fold
from iekd.speed.fuse import fuse


class Teacher(nn.Module):
    """A frozen network, with the frozen encoder of its factor if the method has one. Always in eval mode, never with gradient.

    Copies with their BN folded (iekd.speed.fold): the same features by the same names, up to float32 rounding, or bfloat16 (iekd.speed.precision).
    Runs with the same teacher share what it makes of a batch by a common `seen` (see `engine.share_teachers` and `look`).
    """

    def __init__(self, network: nn.Module, encoder: nn.Module | None, bf16: bool = False):
        super().__init__()
        self.network, self.encoder = fold(network), fold(encoder) if encoder is not None else None
        self.seen: dict[int, tuple[Tensor, Output]] | None = (
            None  # by the identity of the batch, which is kept beside its output
        )
        self.code = "factor"  # what the factor is called in there; equal for equal encoders
        self.bf16 = bf16
        if bf16:
            precision.freeze_in_bf16(self)
        self.eval()

    def place(self, device: torch.device) -> Teacher:
        """On this device, in the form that is fastest there."""
        self.to(device, memory_format=torch.channels_last)
        if device.type == "cpu" and not self.bf16:
            self.network, self.encoder = (
                fuse(self.network),
                fuse(self.encoder) if self.encoder is not None else None,
            )
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> Output:
        known = (
            self.seen[id(images)][1]
            if self.seen and id(images) in self.seen
            else self._compute(images, None)
        )
        output = Output(
            known.logits,
            {
                name: value
                for name, value in known.features.items()
                if not name.startswith("factor")
            },
        )
        if self.encoder is not None:
            output.features["factor"] = known.features[self.code]
        return precision.widen(output) if self.bf16 else output

    @torch.no_grad()
    def look(self, images: Tensor) -> None:
        """Compute the output for all runs that share it; until `seen` is emptied, `forward` need not."""
        self.seen[id(images)] = (
            images,
            self._compute(images, self.seen.get(id(images), (images, None))[1]),
        )

    def _compute(self, images: Tensor, output: Output | None) -> Output:
        """The network's output, and this teacher's factor under its `code`; what is there already is not computed again."""
        with self._arithmetic(images.device):
            output = self.network(images) if output is None else output
            if self.encoder is not None and self.code not in output.features:
                output.features[self.code] = self.encoder(output.feature)
        return output

    def _arithmetic(self, device: torch.device) -> AbstractContextManager:
        return precision.autocast(device) if self.bf16 else nullcontext()
