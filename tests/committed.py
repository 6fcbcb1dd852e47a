"""Networks whose weights are committed."""

from pathlib import Path

from torch import nn

from iekd import networks
from iekd.records import store

TEACHERS = (
    Path(__file__).resolve().parents[1]
    / "runs"
    / "records"
    / "class"
    / "cifar10"
    / "resnet20"
    / "supervised-epochs=30"
)


def committed_teacher(seed: int = 0) -> nn.Module:
    """A teacher of the class scale: ResNet-20, CIFAR-10 at 16 pixels; in eval mode, frozen."""
    tensors, _ = store.load_tensors(TEACHERS / f"seed{seed}.safetensors")
    network = networks.build("resnet20", 10)
    network.load_state_dict(
        {name.removeprefix("student."): tensor for name, tensor in tensors.items()}
    )
    return network.eval().requires_grad_(False)
