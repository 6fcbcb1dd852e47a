"""What runs cost: used to order them and to estimate the time left, not for reporting."""

import functools
from collections.abc import Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from iekd import data, networks
from iekd.config import RunConfig


def cost(config: RunConfig) -> float:
    """Roughly how many floating-point operations the training takes.

    The gradient costs twice the forward pass; a teacher only does the latter. The second of two
    networks trained together adds no cost.
    """
    if "first" in config.parents():
        return 0.0
    side = data.image_shape(config)[-1]
    operations = 0
    if config.student != "none":
        operations += 3 * flops(config.student, config.dataset, side)
    if config.teacher != "none":
        passes = 3 if config.is_mutual else 1
        operations += passes * flops(config.teacher, config.dataset, side)
    return float(config.epochs * data.image_count(config) * operations)


@functools.cache
def flops(network: str, dataset: str, side: int) -> int:
    """Floating-point operations of the forward pass of one image of `side` x `side` pixels."""
    facts = data.FACTS[dataset]
    counter = FlopCounterMode(display=False)
    # Shapes only: nothing is computed.
    with torch.device("meta"), torch.no_grad(), counter:
        built = networks.build(network, facts.num_classes, facts.channels).eval()
        built(torch.empty(1, facts.channels, side, side))
    return counter.get_total_flops()


def in_order(grids: Sequence[list[RunConfig]], needed: dict[str, RunConfig]) -> list[RunConfig]:
    """Order by grid, then seed (an interrupted sweep leaves complete comparisons), then by the
    longest chain of runs that wait for one another, longest first.

    `needed`: what remains to be trained of the grids' runs and their parents, parents first.
    """
    # A run's place in the order: grid and seed of the first run that needs it.
    turn: dict[str, tuple[int, int]] = {}
    for number, configs in enumerate(grids):
        for config in configs:
            turn.setdefault(config.path, (number, config.seed))

    # The cost of the longest chain that waits for a run, including itself; children before parents.
    chain = dict.fromkeys(needed, 0.0)
    for path, config in reversed(needed.items()):
        chain[path] += cost(config)
        # A parent whose children are all finished comes last.
        turn.setdefault(path, (len(grids), config.seed))
        for parent in config.parents().values():
            if parent.path in needed:
                chain[parent.path] = max(chain[parent.path], chain[path])
                turn[parent.path] = min(turn.get(parent.path, turn[path]), turn[path])
    return sorted(needed.values(), key=lambda config: (turn[config.path], -chain[config.path]))
