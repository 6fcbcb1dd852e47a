"""Networks for tests: as after some training, and what there is to count in them."""

import torch
from torch import nn

from iekd.networks import build


def lived(network: nn.Module) -> nn.Module:
    """Statistics, scales and shifts as after some training: none at its initial value."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.3, 2, generator=generator)
            with torch.no_grad():
                module.weight.uniform_(-0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.3, generator=generator)
    return network.eval()


def norms(network: nn.Module) -> int:
    """How many batch normalisations it has."""
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def size(name: str, classes: int = 10, in_channels: int = 3) -> int:
    """Parameters of a network."""
    return sum(p.numel() for p in build(name, classes, in_channels).parameters())
