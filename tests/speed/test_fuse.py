"""Fused networks compute what the folded ones do."""

import pytest
import torch
from made import lived
from torch import nn
from torch.nn.functional import relu

from iekd import networks
from iekd.speed.fold import fold
from iekd.speed.fuse import AVAILABLE, FusedConv, fuse
from iekd.training.teacher import Teacher

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="this torch has no oneDNN")


def fused_convs(network: nn.Module) -> list[FusedConv]:
    return [module for module in network.modules() if isinstance(module, FusedConv)]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("name", ["resnet20", "resnet8x0.5", "wrn16_2", "vgg13", "mobilenetv2x0.5"])
@torch.no_grad()
def test_features_and_logits_are_those_of_the_folded_network_at_any_batch_size(name):
    folded = fold(lived(networks.build(name, 10))).to(memory_format=torch.channels_last)
    fused = fuse(folded)
    for batch in (4, 7, 1):  # the first call decides the order of the weights
        images = torch.randn(batch, 3, 16, 16).contiguous(memory_format=torch.channels_last)
        expected, output = folded(images), fused(images)
        assert list(output.features) == list(expected.features)
        for key, value in {**expected.features, "logits": expected.logits}.items():
            got = output.logits if key == "logits" else output.features[key]
            assert (got - value).abs().max() <= 1e-5 * value.abs().max(), (key, batch)


def test_every_convolution_of_a_resnet_but_one_of_two_that_are_added_is_fused():
    network = fuse(fold(lived(networks.build("resnet20", 10))))
    left = [
        m
        for name, m in network.named_modules()
        if isinstance(m, nn.Conv2d) and not name.endswith("convolution")
    ]
    assert (
        len(fused_convs(network)) == 19 and len(left) == 2
    )  # the projections of the shortcuts, whose sums conv2 makes
    with_relu = [conv for conv in fused_convs(network) if conv.relu == "relu"]
    assert len(with_relu) == 16  # the stages' last sums are features of their own, before the ReLU


@torch.no_grad()
def test_what_others_read_too_is_not_fused():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            x = self.a(x)
            y = self.b(relu(x))
            return x + y, y

    network, x = Network().eval(), torch.randn(2, 3, 8, 8)
    fused = fuse(network)
    assert not fused_convs(fused)
    assert all(torch.equal(a, b) for a, b in zip(fused(x), network(x), strict=True))


@torch.no_grad()
def test_a_sum_of_two_convolutions_and_of_one_with_itself():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(3, 3, 1) for _ in range(3))

        def forward(self, x):
            y = self.a(x) + self.b(x)
            z = self.c(relu(y))
            return z + z

    network, x = Network().eval(), torch.randn(2, 3, 8, 8)
    fused = fuse(network)
    assert len(fused_convs(fused)) == 1
    assert torch.allclose(fused(x), network(x), rtol=1e-6, atol=1e-6)


def test_a_teacher_is_fused_on_a_cpu_and_keeps_its_weights():
    network = networks.build("resnet8", 10)
    teacher = Teacher(network, None).move_to(torch.device("cpu"))
    assert fused_convs(teacher) and not fused_convs(
        Teacher(network, None, bf16=True).move_to(torch.device("cpu"))
    )
    assert sum(p.numel() for p in teacher.parameters()) == sum(
        p.numel() for p in fold(network).parameters()
    )
