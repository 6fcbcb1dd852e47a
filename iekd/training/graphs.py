"""Whole-step CUDA graphs: the step of all runs of a pack is captured once and replayed, so the host
has little to do.

Every run is a branch on its own stream: small networks do not fill a GPU, so the branches run side
by side. A failed capture costs only speed: the steps are then computed one by one, as on a CPU.
IEKD_GRAPHS=off disables graphs.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from iekd.config import RunConfig
from iekd.errors import ConfigError
from iekd.training.pack import Pack, Steps
from iekd.training.run import Run

# Eager steps before a capture, as PyTorch requires; they are ordinary steps of the run.
WARM_UP = 3


def graphs_wanted() -> bool:
    """Whether $IEKD_GRAPHS leaves them on, which is the default.

    Raises `ConfigError` for any value other than on and off.
    """
    word = os.environ.get("IEKD_GRAPHS", "on").strip().lower()
    if word not in ("on", "off"):
        raise ConfigError(f"IEKD_GRAPHS: {word!r} is not usable; choose on or off")
    return word == "on"


class CaptureError(RuntimeError):
    """A graph could not be captured; nothing was computed."""


class GraphedPack(Pack):
    """A pack, or one run, by CUDA graphs: one for each batch size in each phase of the methods.

    The last batch of an epoch is smaller; phases are those of `method.phase(epoch)`.
    """

    def __init__(self, runs: Sequence[tuple[RunConfig, Run]]):
        super().__init__(runs)
        self.streams: Streams | None = Streams(len(runs))
        self.graphs: dict[tuple, _Graph] = {}

    def step(self, part: Tensor, epoch: int) -> Steps:
        if self.streams is None:
            return super().step(part, epoch)
        methods: list[Any] = [run.learner["method"] for _, run in self.runs]
        phases = [method.phase(epoch) for method in methods if hasattr(method, "phase")]
        graph = self.graphs.setdefault((part.shape[-1], *phases), _Graph(self.streams))
        try:
            return graph(part, lambda part: super(GraphedPack, self).step(part, epoch))
        except CaptureError as error:
            self.streams = None
            tqdm.write(
                f"no CUDA graphs ({error}): continuing step by step, with the same numbers; "
                "IEKD_GRAPHS=off does so from the start"
            )
            return super().step(part, epoch)

    def branch(self, k: int) -> AbstractContextManager:
        return nullcontext() if self.streams is None else self.streams.branch(k)

    def join(self) -> None:
        if self.streams is not None:
            self.streams.join()


class Streams:
    """A stream for whole steps, and one for each run, forked from it and joined to it again."""

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
        """On the stream for whole steps, in order with the work before and after."""
        self.main.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.main):
            yield
        torch.cuda.current_stream().wait_stream(self.main)

    def capture(self, step: Callable[[], Steps]) -> tuple[torch.cuda.CUDAGraph, Steps]:
        """Record a step without computing it: the graph, and the result that every replay fills."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.main):
            return graph, step()


class _Graph:
    """The graph of one kind of step: a few steps are computed, one is captured, then replayed."""

    def __init__(self, streams: Streams):
        self.streams, self.eager = streams, WARM_UP
        self.graph: Any = None

    def __call__(self, part: Tensor, step: Callable[[Tensor], Steps]) -> Steps:
        if self.eager:
            self.eager -= 1
            with self.streams.beside():
                return step(part)
        if self.graph is None:
            self._capture(part, step)
        self.part.copy_(part)
        self.graph.replay()
        # the next replay overwrites the row
        return self.names, self.row.clone()

    def _capture(self, part: Tensor, step: Callable[[Tensor], Steps]) -> None:
        """A graph that reads `self.part` and writes `self.row`."""
        self.part = part.clone()
        try:
            self.graph, (self.names, self.row) = self.streams.capture(lambda: step(self.part))
        except Exception as error:
            # catch anything: if the step itself is wrong, the next one will show it
            raise CaptureError(str(error).partition("\n")[0] or type(error).__name__) from error
