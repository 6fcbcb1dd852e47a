"""Two networks of one training, seen from the other side: what was the peer's becomes the student's, and the reverse.

A mutual training keeps its second network as 'peer'. The second's own record and weights are those of the first with the two roles
exchanged, in the names of tensors ('peer.conv.weight') and of curves ('test_error_peer').
"""

from __future__ import annotations

from torch import Tensor

from iekd.training.engine import SUFFIX

OTHER = {"student": "peer", "peer": "student"}
SHARED = ("lr", "loss")  # the curves of the training, not of one of its networks


def swap_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of a learner with 'student' and 'peer' exchanged in every name."""
    return {
        ".".join(OTHER.get(part, part) for part in name.split(".")): tensor
        for name, tensor in state.items()
    }


def swap_curves(curves: dict[str, list]) -> dict[str, list]:
    """A history with the two networks exchanged, also what only one of them has; what is of both (`SHARED`) stays."""
    suffix = SUFFIX["peer"]

    def other(name: str) -> str:
        if name in SHARED:
            return name
        return name.removesuffix(suffix) if name.endswith(suffix) else name + suffix

    return {other(name): curve for name, curve in curves.items()}
