"""Folded networks compute what the originals do, by the same names."""

import pytest
import torch
from made import lived, norms
from tiny import tiny
from torch import nn

from iekd import networks
from iekd.method.factor import Encoder
from iekd.speed.fold import fold
from iekd.training import loop, runner

# BN layers that must stay: those after a sum, or after a stem whose output is also summed (wrn16_2
# projects it instead).
LEFT = {"resnet20": 0, "resnet8x0.5": 0, "vgg13": 0, "wrn10_1": 4, "wrn16_2": 6}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("name", LEFT)
@torch.no_grad()
def test_features_by_name_and_logits_are_those_of_the_original(name):
    network, images = lived(networks.build(name, 10)), torch.randn(4, 3, 16, 16)
    expected, folded = network(images), fold(network)
    output = folded(images)
    assert norms(folded) == LEFT[name] < norms(network)
    assert list(output.features) == list(expected.features)
    for key, value in {**expected.features, "logits": expected.logits}.items():
        got = output.logits if key == "logits" else output.features[key]
        assert (got - value).abs().max() <= 1e-5 * value.abs().max(), key


@torch.no_grad()
def test_in_double_precision_only_the_order_of_the_operations_differs():
    network, images = (
        lived(networks.build("wrn16_2", 10)).double(),
        torch.randn(2, 3, 16, 16, dtype=torch.double),
    )
    assert torch.allclose(fold(network)(images).logits, network(images).logits, rtol=0, atol=1e-12)


@torch.no_grad()
def test_the_factor_encoder():
    encoder, feature = lived(Encoder(16, 8)), torch.randn(4, 16, 4, 4).relu()
    folded = fold(encoder)
    assert norms(folded) == 0 and folded.factor_channels == 8
    assert torch.allclose(folded(feature), encoder(feature), rtol=1e-5, atol=1e-5)


def test_the_original_stays_and_the_copy_is_frozen():
    network = networks.build("resnet8", 10)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    folded = fold(network)
    assert (
        network.training
        and all(p.requires_grad for p in network.parameters())
        and norms(network) == 9
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not any(m.training for m in folded.modules()) and not any(
        p.requires_grad for p in folded.parameters()
    )


def test_a_convolution_that_others_read_too_is_not_folded():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            x = self.conv(x)
            return self.norm(x) + x

    network, x = lived(Shared()), torch.randn(2, 3, 8, 8)
    assert norms(fold(network)) == 1
    assert torch.equal(fold(network)(x), network(x))


@pytest.mark.parametrize("method", ["kd", "ft", "ie-ft", "factor-ae"])
def test_the_engine_folds_the_teacher_and_its_encoder_and_training_stays_the_same(
    monkeypatch, method
):
    """An epoch with folded networks differs from one with the originals by rounding only."""
    config = (
        tiny(method, augment="standard", inherit="partial-l2")
        if method == "ie-ft"
        else tiny(method, augment="standard")
    )
    run = runner.make_run(config)
    assert norms(run.teacher) == 0
    log = loop.train_epoch(config, run, 0)
    with monkeypatch.context() as patch:
        patch.setattr(
            "iekd.training.teacher.fold", lambda network: network.eval().requires_grad_(False)
        )
        plain = runner.make_run(config)
        assert norms(plain.teacher) > 0
        expected = loop.train_epoch(config, plain, 0)
    assert log == pytest.approx(expected, rel=1e-5)
