"""Whole-step CUDA graphs: the step of all runs of a pack is captured once and replayed, so that the host has almost nothing to do.

Every run is a branch on a stream of its own: small networks do not fill a card, and the branches run side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from iekd.engine import Member, lock_step

WARM_UP = 3  # eager steps before a capture, as PyTorch asks for; they are steps of the run like any other
Logs = tuple[list[list[str]], Tensor]  # what `engine.lock_step` returns


class Graphed:
    """`engine.lock_step` as a CUDA graph, for full batches; the smaller last one of an epoch is computed step by step.

    The graph is captured anew when the runs change, or the phase of one of their methods (see iekd.methods).
    """

    def __init__(self) -> None:
        self.signature: Any = None

    def __call__(self, members: Sequence[Member], part: Tensor, epoch: int) -> Logs:
        if part.shape[-1] < members[0][0].batch_size:
            return lock_step(members, part, epoch)
        signature = [(id(run.learner), _phase(run.learner["method"], epoch)) for _, run in members]
        if signature != self.signature:
            self.signature, self.graph, self.eager = signature, None, WARM_UP
            self.streams = Streams(len(members))
        if self.eager:
            self.eager -= 1
            with self.streams.beside():
                return lock_step(members, part, epoch, self.streams)
        if self.graph is None:  # it reads `self.part` and writes `self.row`
            self.part = part.clone()
            self.graph, (self.names, self.row) = self.streams.capture(lambda: lock_step(members, self.part, epoch, self.streams))
        self.part.copy_(part)
        self.graph.replay()
        return self.names, self.row.clone()  # the next replay overwrites it


def _phase(method: Any, epoch: int) -> Any:
    return method.phase(epoch) if hasattr(method, "phase") else None


class Streams:
    """A stream for whole steps, and one for each run, which are forked from it and joined to it again: the branches of a graph."""

    def __init__(self, count: int):
        self.main, *self.streams = (torch.cuda.Stream() for _ in range(1 + count))

    @contextmanager
    def branch(self, k: int) -> Iterator[None]:
        self.streams[k].wait_stream(self.main)
        with torch.cuda.stream(self.streams[k]):
            yield

    def join(self) -> None:
        for stream in self.streams:
            self.main.wait_stream(stream)

    @contextmanager
    def beside(self) -> Iterator[None]:
        """On the stream for whole steps, in order with what comes before and after."""
        self.main.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.main):
            yield
        torch.cuda.current_stream().wait_stream(self.main)

    def capture(self, step: Callable[[], Logs]) -> tuple[torch.cuda.CUDAGraph, Logs]:
        """Record a step without computing it: the graph, and what the step returns, filled by every replay."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.main):
            return graph, step()
