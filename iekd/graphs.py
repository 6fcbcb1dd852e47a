"""Whole-step CUDA graphs: the step of all runs of a pack is captured once and replayed, so that the host has almost nothing to do.

Every run is a branch on a stream of its own: small networks do not fill a card, and the branches run side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from iekd.engine import Member, lock_step

WARM_UP = 3  # eager steps before a capture, as PyTorch asks for; they are steps of the run like any other


class Graphed:
    """`engine.lock_step` as a CUDA graph, for full batches; the smaller last one of an epoch is computed step by step.

    The graph is captured anew when the runs change, and every epoch if the step of a method depends on the epoch (`staged`).
    """

    def __init__(self) -> None:
        self.signature: Any = None

    def __call__(self, members: Sequence[Member], part: Tensor, epoch: int) -> tuple[list[list[str]], Tensor]:
        if part.shape[-1] < members[0][0].batch_size:
            return lock_step(members, part, epoch)
        staged = any(getattr(run.learner["method"], "staged", False) for _, run in members)
        signature = [id(run.learner) for _, run in members], epoch if staged else None
        if signature != self.signature:
            self.signature, self.graph, self.eager = signature, None, WARM_UP
            self.stream = torch.cuda.Stream()
        if self.eager:
            self.eager -= 1
            with _beside(self.stream):
                return lock_step(members, part, epoch)
        if self.graph is None:
            self._capture(members, part, epoch)
        self.part.copy_(part)
        self.graph.replay()
        return self.names, self.row.clone()  # the next replay overwrites it

    def _capture(self, members: Sequence[Member], part: Tensor, epoch: int) -> None:
        """Record the step without computing it. The graph reads `self.part` and writes `self.row`."""
        self.graph, self.part = torch.cuda.CUDAGraph(), part.clone()
        with torch.cuda.graph(self.graph, stream=self.stream):
            self.names, self.row = lock_step(members, self.part, epoch, Streams(len(members)))


class Streams:
    """The branches of a graph: a stream for each run, forked from the current stream and joined to it again."""

    def __init__(self, count: int):
        self.main = torch.cuda.current_stream()
        self.streams = [torch.cuda.Stream() for _ in range(count)]

    @contextmanager
    def branch(self, k: int) -> Iterator[None]:
        self.streams[k].wait_stream(self.main)
        with torch.cuda.stream(self.streams[k]):
            yield

    def join(self) -> None:
        for stream in self.streams:
            self.main.wait_stream(stream)


@contextmanager
def _beside(stream: torch.cuda.Stream) -> Iterator[None]:
    """On another stream, in order with what comes before and after."""
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)
