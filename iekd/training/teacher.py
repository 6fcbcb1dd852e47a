"""The frozen network that a student learns from, in the form that runs fastest."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from iekd.method.features import Batch
from iekd.networks import Output
from iekd.speed import precision
from iekd.speed.fold import fold
from iekd.speed.fuse import fuse


class Teacher(nn.Module):
    """A frozen network, with the frozen encoder of its factor if the method has one. Always in eval
    mode, without gradients.

    Both are copies with folded batch normalisation: the same features by the same names, up to
    float32 rounding, or bfloat16.
    """

    def __init__(self, network: nn.Module, encoder: nn.Module | None, bf16: bool = False):
        super().__init__()
        self.network, self.encoder = fold(network), fold(encoder) if encoder is not None else None
        self.bf16 = bf16
        if bf16:
            precision.freeze_in_bf16(self)
        self.eval()

    def move_to(self, device: torch.device) -> Teacher:
        """Move to a device, in the form that is fastest there."""
        self.to(device, memory_format=torch.channels_last)
        if device.type == "cpu" and not self.bf16:
            self.network = fuse(self.network)
            self.encoder = fuse(self.encoder) if self.encoder is not None else None
        return self

    def forward(self, images: Tensor, batch: Batch | None = None) -> Output:
        """Output for normalised images (B, C, H, W); `batch` is for stored teachers."""
        seen = self.look(images)
        return self.answer(seen, self.encode(seen))

    # The three parts of the answer: runs that share a network or an encoder share the first or the
    # second part.

    @torch.no_grad()
    def look(self, images: Tensor) -> Output:
        """The network's output for the images."""
        with self._arithmetic(images.device):
            return self.network(images)

    @torch.no_grad()
    def encode(self, seen: Output) -> Tensor | None:
        """The factor (B, K, H, W) of that output, if there is an encoder."""
        if self.encoder is None:
            return None
        with self._arithmetic(seen.logits.device):
            return self.encoder(seen.feature)

    def answer(self, seen: Output, factor: Tensor | None) -> Output:
        """Both as one output, in float32."""
        features = dict(seen.features)
        if factor is not None:
            features["factor"] = factor
        output = Output(seen.logits, features)
        return precision.widen(output) if self.bf16 else output

    def _arithmetic(self, device: torch.device) -> AbstractContextManager:
        return precision.autocast(device) if self.bf16 else nullcontext()
