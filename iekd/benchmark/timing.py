"""Pieces of work timed in turns, with ratios within a round: a busy machine slows all alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from tqdm import tqdm


def now(device: torch.device) -> float:
    """The time when all work on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def in_turns(
    work: Mapping[Any, Callable[[], Any]], rounds: int, device: torch.device, title: str = ""
) -> dict[Any, list[float]]:
    """Seconds for every piece of work in every round, after a warm-up round.

    Every other round is in reverse order. Without a title there is no bar.
    """
    times: dict[Any, list[float]] = {name: [] for name in work}
    for number in tqdm(range(rounds + 1), desc=title, unit="round", disable=not title):
        for name in list(work) if number % 2 else reversed(list(work)):
            began = now(device)
            work[name]()
            times[name].append(now(device) - began)
    return {name: seconds[1:] for name, seconds in times.items()}


def speeds(times: Mapping[str, list[float]], images: int) -> dict[str, dict[str, float]]:
    """Images per second of every side, and as a multiple of the first side's."""
    first = next(iter(times.values()))
    found = {}
    for side, seconds in times.items():
        speed = round(images / statistics.median(seconds), 1)
        found[side] = {"images_per_second": speed, **ratios(first, seconds)}
    return found


def ratios(slow: list[float], fast: list[float]) -> dict[str, float]:
    """How many times as long the first took, within each round: median, smallest, largest."""
    each = [a / b for a, b in zip(slow, fast, strict=True)]
    found = {"ratio": statistics.median(each), "low": min(each), "high": max(each)}
    return {name: round(value, 3) for name, value in found.items()}
