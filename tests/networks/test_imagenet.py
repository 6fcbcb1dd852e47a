"""ResNets of ImageNet: torchvision's networks, weights included, and as safe and as traceable as
ours.
"""

import pytest
import torch
from made import lived, norms, size
from torch import nn

from iekd import networks
from iekd.config.presets import SCALE_DEFAULTS
from iekd.speed import precision
from iekd.speed.fold import fold
from iekd.speed.fuse import AVAILABLE, fuse

PAIR = [SCALE_DEFAULTS["class", "imagenette"][role] for role in ("teacher", "student")]
SMALL = ["resnet10x0.125", "resnet10x0.125_3x3", "resnet18x0.125_3x3"]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def images(side: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, side, side).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name, count", [("resnet18", 11_689_512), ("resnet34", 21_797_672)])
def test_size_at_1000_classes_is_the_published_one(name: str, count: int) -> None:
    assert size(name, classes=1000) == count


@pytest.mark.parametrize(
    "name, sides", [("resnet18x0.25", (16, 8, 4, 2)), ("resnet18x0.25_3x3", (32, 16, 8, 4))]
)
@torch.no_grad()
def test_stages_at_64_pixels(name: str, sides: tuple[int, ...]) -> None:
    """The original stem leaves 2 x 2 positions, the 3x3 stem 4 x 4; features stand on both sides of
    the ReLU, as elsewhere.
    """
    network = networks.build(name, 10)
    features = network(images(64)).features
    stages = [f"stage{k}" for k in range(1, 5)]
    assert list(features) == [f"{stage}{end}" for stage in stages for end in ("_pre", "")] + [
        "pooled"
    ]
    assert network.feature_channels == 128 and list(network.norms) == stages
    for stage, channels, side in zip(stages, (16, 32, 64, 128), sides, strict=True):
        before, after = features[f"{stage}_pre"], features[stage]
        assert (
            after.shape == (2, channels, side, side)
            and network.norms[stage].num_features == channels
        )
        assert before.min() < 0 and torch.equal(before.relu(), after)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 33, 32)])
def test_forward_backward_down_to_the_smallest_images(
    name: str, shape: tuple[int, int, int]
) -> None:
    network = networks.build(name, 7, shape[0])
    output = network(torch.randn(2, *shape))
    assert output.logits.shape == (2, 7) and networks.feature_shapes(name, shape)["pooled"] == (
        network.feature_channels,
    )
    output.logits.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("name", [*SMALL, "resnet34_3x3", "resnet34x2", "resnet10"])
def test_good_names(name: str) -> None:
    networks.check_name(name)


BAD = [
    "resnet18_7x7",
    "resnet18x1",
    "resnet18x1_3x3",
    "resnet20_3x3",
    "resnet50_3x3",
    "resnet101",
    "resnet18_3x3x0.5",
]


@pytest.mark.parametrize("name", BAD)
def test_bad_names_are_refused_with_the_list(name: str) -> None:
    with pytest.raises(ValueError, match=r"is not known.*resnet10, resnet18, resnet34 of ImageNet"):
        networks.check_name(name)


def test_the_names_of_cifar_resnets_mean_what_they_did() -> None:
    """Three stages; only depths that are no 6n + 2 are new."""
    for depth in range(8, 111, 6):
        with torch.device("meta"):
            assert len(networks.build(f"resnet{depth}", 10).stages) == 3


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_folded_and_fused_they_compute_the_same(name: str) -> None:
    network = lived(networks.build(name, 10)).to(memory_format=torch.channels_last)
    folded, x = fold(network), images(64)
    expected = network(x)
    assert norms(folded) == 0
    for other in (folded, fuse(folded)) if AVAILABLE else (folded,):
        output = other(x)
        assert list(output.features) == list(expected.features)
        for key, value in {**expected.features, "logits": expected.logits}.items():
            got = output.logits if key == "logits" else output.features[key]
            assert (got - value).abs().max() <= 1e-5 * value.abs().max(), key


@pytest.mark.parametrize("name", SMALL)
def test_no_layer_is_idle_and_every_statistic_is_updated_once(name: str) -> None:
    network = networks.build(name, 10)
    (network(images(64, 4)).logits * torch.randn(4, 10)).sum().backward()
    assert all(p.grad.abs().max() > 1e-5 for p in network.parameters())
    assert all(
        m.num_batches_tracked == 1 for m in network.modules() if isinstance(m, nn.BatchNorm2d)
    )


@pytest.mark.parametrize("name", SMALL)
def test_in_bfloat16_they_compute_about_the_same(name: str) -> None:
    network = networks.build(name, 10).to(memory_format=torch.channels_last)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    x = images(64, 8)
    expected = network(x)
    network.load_state_dict(state)
    output = precision.train_in_bf16(network)(x)
    assert (
        0
        < (output.logits.float() - expected.logits).abs().max()
        < 0.1 * expected.logits.abs().max()
    )
    output.logits.float().sum().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())


# ---------------------------------------------------------------------- what this torch cannot do


@pytest.mark.parametrize("name", [*SMALL, "resnet18", "resnet34_3x3"])
def test_no_pointwise_convolution_has_a_stride(name: str) -> None:
    """See `networks.common.thin`."""
    with torch.device("meta"):
        found = [
            m
            for m in networks.build(name, 10).modules()
            if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)
        ]
    assert found and all(convolution.stride == (1, 1) for convolution in found)
