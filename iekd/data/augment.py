"""Random crop and flip of whole batches of uint8 images: one gather, no loop.

All draws of an epoch are made at once on the CPU, so that every device, and a run resumed in the
middle of an epoch, sees the same images.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Draws(NamedTuple):
    """The random draws for n images."""

    dy: Tensor  # int64 (n,): first row of the crop in the padded image, 0..2 pad
    dx: Tensor  # int64 (n,): first column
    flip: Tensor  # bool (n,): mirror horizontally

    def at(self, index: Tensor) -> "Draws":
        """The draws of some of the images."""
        return Draws(*(values[index] for values in self))

    def to(self, device: torch.device | str) -> "Draws":
        return Draws(*(values.to(device) for values in self))


def draw(n: int, pad: int, flip: bool, generator: torch.Generator) -> Draws:
    """Draw crop and flip for n images, all equally likely; without `flip`, nothing is mirrored."""
    dy, dx = torch.randint(0, 2 * pad + 1, (2, n), generator=generator)
    # drawn in any case, so that later draws stay the same
    mirrored = torch.randint(0, 2, (n,), generator=generator).bool()
    return Draws(dy, dx, mirrored & flip)


def crop_and_flip(images: Tensor, draws: Draws, pad: int) -> Tensor:
    """Pad by reflection, crop to the old size at (dy, dx), then mirror.

    uint8 (B, C, H, W) in and out, pad < H and W. The padded image is never built: each target
    pixel looks up its source, and reflection is arithmetic on the index.
    """
    batch, channels, height, width = images.shape
    column = torch.arange(width, device=images.device)
    column = torch.where(draws.flip[:, None], width - 1 - column, column)
    y = _reflect(torch.arange(height, device=images.device) + draws.dy[:, None] - pad, height)
    x = _reflect(column + draws.dx[:, None] - pad, width)
    source = (y[:, :, None] * width + x[:, None, :]).view(batch, 1, height * width)
    return images.flatten(2).gather(2, source.expand(-1, channels, -1)).view_as(images)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 (B, C, H, W) -> float32 in channels_last, standardised.

    mean, std: (1, C, 1, 1), for pixels in 0..1.
    """
    return ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def _reflect(index: Tensor, size: int) -> Tensor:
    """Fold indices -size < i < 2 size - 1 into 0..size - 1, as in  2 1 | 0 1 2 3 | 2 1."""
    last = size - 1
    return last - (last - index.abs()).abs()
