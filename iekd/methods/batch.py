"""What a method knows of a batch besides the networks' outputs."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """`labels` (B,); `index` (B,): the place of each image in the training split (contrastive methods keep a memory by it).

    `epoch` counts from 0: a method with stages asks it which stage this is. All are the same for every method with one seed.
    """

    labels: Tensor
    index: Tensor
    epoch: int = 0
