"""Whole-step CUDA graphs: the step of all runs of a pack is captured once and replayed, so that the host has almost nothing to do.

Every run is a branch on a stream of its own: small networks do not fill a card, and the branches run side by side.
A capture that fails costs speed and nothing else: the steps are computed one by one, as on a CPU. IEKD_GRAPHS=off leaves graphs out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from iekd.errors import ConfigError
from iekd.training.engine import Member, lock_step

WARM_UP = (
    3  # eager steps before a capture, as PyTorch asks for; they are steps of the run like any other
)
Logs = tuple[list[list[str]], Tensor]  # what `engine.lock_step` returns


def graphs_wanted() -> bool:
    """Whether $IEKD_GRAPHS leaves them on, as they are without it. Raises `ConfigError` for another word than on and off."""
    if (word := os.environ.get("IEKD_GRAPHS", "on").strip().lower()) not in ("on", "off"):
        raise ConfigError(f"IEKD_GRAPHS: {word!r} is not usable; choose on or off")
    return word == "on"


class Graphed:
    """`engine.lock_step` as CUDA graphs: one for each size of a batch (the last of an epoch is smaller) in each phase of the methods
    (see iekd.baselines.registry). They are captured anew when the runs change."""

    def __init__(self) -> None:
        self.runs: list[int] = []
        self.failed = False

    def __call__(self, members: Sequence[Member], part: Tensor, epoch: int) -> Logs:
        if self.failed:
            return lock_step(members, part, epoch)
        if (runs := [id(run.learner) for _, run in members]) != self.runs:
            self.runs, self.streams, self.graphs = runs, Streams(len(members)), {}
        kind = part.shape[-1], *(_phase(run.learner["method"], epoch) for _, run in members)
        try:
            return self.graphs.setdefault(kind, _Graph(self.streams))(members, part, epoch)
        except CaptureError as error:
            self.failed = True
            tqdm.write(
                f"no CUDA graphs ({error}): going on step by step, with the same numbers; IEKD_GRAPHS=off does so from the start"
            )
            return lock_step(members, part, epoch)


class CaptureError(RuntimeError):
    """A graph could not be captured; nothing was computed."""


class _Graph:
    """The graph of one kind of steps: the first of them are computed step by step, then one is captured and from now on replayed."""

    def __init__(self, streams: Streams):
        self.streams, self.eager, self.graph = streams, WARM_UP, None

    def __call__(self, members: Sequence[Member], part: Tensor, epoch: int) -> Logs:
        if self.eager:
            self.eager -= 1
            with self.streams.beside():
                return lock_step(members, part, epoch, self.streams)
        if self.graph is None:  # it reads `self.part` and writes `self.row`
            self.part = part.clone()
            try:
                self.graph, (self.names, self.row) = self.streams.capture(
                    lambda: lock_step(members, self.part, epoch, self.streams)
                )
            except (
                Exception
            ) as error:  # whatever it is: if the step itself is wrong, that shows in the next one
                raise CaptureError(str(error).partition("\n")[0] or type(error).__name__) from error
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
