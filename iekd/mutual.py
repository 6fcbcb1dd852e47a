"""Two networks of one training, seen from the other side: what was the peer's becomes the student's, and the reverse.

A mutual training keeps its second network as 'peer'. The second's own record and weights are those of the first with the two roles
exchanged, in the names of tensors ('peer.conv.weight') and of curves ('test_error_peer').
"""

from __future__ import annotations

from torch import Tensor

from iekd.engine import SUFFIX

OTHER = {"student": "peer", "peer": "student"}


def swap_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of a learner with 'student' and 'peer' exchanged in every name."""
    return {".".join(OTHER.get(part, part) for part in name.split(".")): tensor for name, tensor in state.items()}


def swap_curves(curves: dict[str, list]) -> dict[str, list]:
    """A history with the two networks exchanged; what is of both ('lr', 'loss') stays."""
    suffix = SUFFIX["peer"]

    def other(name: str) -> str:
        if name.endswith(suffix):
            return name.removesuffix(suffix)
        return name + suffix if name + suffix in curves else name

    return {name: curves[other(name)] for name in curves}
