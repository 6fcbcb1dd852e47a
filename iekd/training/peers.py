"""Two networks of one training, seen from the other side: the peer becomes the student, and the
reverse.

A mutual training keeps its second network as 'peer'. The second's own record and weights are those
of the first with the two roles exchanged, in the names of tensors ('peer.conv.weight') and of
curves ('test_error_peer').
"""

from __future__ import annotations

from torch import Tensor

from iekd.training.loop import SUFFIX

OTHER = {"student": "peer", "peer": "student"}
SHARED = ("lr", "loss")  # the curves of the training, not of one of its networks


def swap_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of a learner with 'student' and 'peer' exchanged in every name."""
    swapped = {}
    for name, tensor in state.items():
        parts = [OTHER.get(part, part) for part in name.split(".")]
        swapped[".".join(parts)] = tensor
    return swapped


def swap_curves(curves: dict[str, list]) -> dict[str, list]:
    """A history with the two networks exchanged; what is of both (`SHARED`) stays."""
    return {_other(name): curve for name, curve in curves.items()}


def _other(name: str) -> str:
    if name in SHARED:
        return name
    suffix = SUFFIX["peer"]
    return name.removesuffix(suffix) if name.endswith(suffix) else name + suffix
