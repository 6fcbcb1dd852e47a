"""Networks: parameter counts of the literature, shapes, features, names."""

import pytest
import torch
from made import size
from torch import nn
from torch.nn.functional import avg_pool2d, relu

from iekd.networks import Output, build, check_name, feature_shapes
from iekd.networks.resnet import Projection

BAD = [
    *(
        "",
        "none",
        "ResNet20",
        "resnet",
        "resnet21",
        "resnet2",
        "resnet116",
        "resnet020",
        "resnet20 ",
        "resnet20\n",
    ),
    *(
        "resnet20x",
        "resnet20x0",
        "resnet20x1",
        "resnet20x1.0",
        "resnet20x.5",
        "resnet20x0.50",
        "resnet20x1.2.3",
    ),
    *(
        "resnet20x-1",
        "vgg16",
        "vgg13x2",
        "wrn16",
        "wrn17_1",
        "wrn4_1",
        "wrn16_0",
        "wrn16-2",
        "wrn16_02",
    ),
    *("mobilenet", "mobilenetv2", "mobilenetv2x1", "mobilenetv2x0.50"),
]

SMALL = [
    "resnet8",
    "resnet8x0.25",
    "resnet14x0.5",
    "wrn10_1",
    "wrn16_2",
    "vgg13",
    "mobilenetv2x0.5",
]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def resnet_formula(depth: int, a: int, classes: int = 10) -> int:
    """Sum over the layers for channels a, 2a, 4a: convolutions, BN scale and shift, projections,
    classifier.
    """
    n, total = (depth - 2) // 6, 27 * a + 2 * a
    for stage, c in enumerate((a, 2 * a, 4 * a)):
        total += 2 * n * (9 * c * c + 2 * c)
        # the first convolution reads half the channels; the projection has c/2 * c weights and a BN
        if stage:
            total += -9 * c * c // 2 + c * c // 2 + 2 * c
    return total + (4 * a + 1) * classes


def wrn_formula(depth: int, k: int, classes: int = 10) -> int:
    """Same for pre-activation blocks: BN before each convolution, projections without BN, one BN at
    the end.
    """
    n, total, before = (depth - 4) // 6, 27 * 16, 16
    for c in (16 * k, 32 * k, 64 * k):
        total += 9 * before * c + 9 * c * c * (2 * n - 1) + 2 * before + 2 * c * (2 * n - 1)
        total += before * c if before != c else 0
        before = c
    return total + 2 * before + (before + 1) * classes


@pytest.mark.parametrize(
    "name, count", [("resnet20", 272_474), ("resnet56", 855_770), ("resnet8", 78_042)]
)
def test_resnet_has_the_published_size(name: str, count: int) -> None:
    assert size(name) == count


@pytest.mark.parametrize(
    "name, count", [("wrn16_1", 175_066), ("wrn16_2", 691_674), ("wrn40_1", 563_930)]
)
def test_wrn_has_the_published_size(name: str, count: int) -> None:
    assert size(name) == count


@pytest.mark.parametrize(
    "name, count",
    [
        ("wrn16_2", 703_284),
        ("wrn40_2", 2_255_156),
        ("vgg13", 9_462_180),
        ("mobilenetv2x0.5", 812_836),
    ],
)
def test_size_at_100_classes_is_the_published_one(name: str, count: int) -> None:
    assert size(name, classes=100) == count


@pytest.mark.parametrize("name, count", [("resnet8x4", 1_233_540), ("resnet32x4", 7_433_860)])
def test_the_wide_resnets_are_those_of_repdistiller(name: str, count: int) -> None:
    """Stem and stages of 32, 64, 128, 256 channels; the first block has a projection."""
    assert size(name, classes=100) == count
    network = build(name, 100)
    assert network.conv.out_channels == 32 and [
        stage[0].conv1.out_channels for stage in network.stages
    ] == [64, 128, 256]


@pytest.mark.parametrize("depth", range(8, 111, 6))
def test_resnet_sizes_follow_the_formula(depth: int) -> None:
    assert size(f"resnet{depth}") == resnet_formula(depth, 16)


@pytest.mark.parametrize("depth, k", [(16, 1), (16, 2), (40, 1), (40, 2), (46, 4), (28, 10)])
def test_wrn_sizes_follow_the_formula(depth: int, k: int) -> None:
    with torch.device("meta"):
        assert size(f"wrn{depth}_{k}") == wrn_formula(depth, k)


def test_vgg13_size_follows_the_formula() -> None:
    channels = [3, 64, 64, 128, 128, 256, 256, 512, 512, 512, 512]
    layers = sum(
        9 * a * b + 3 * b for a, b in zip(channels, channels[1:], strict=False)
    )  # bias, BN scale, BN shift
    assert size("vgg13") == layers + 513 * 10


def test_mobilenet_size_follows_the_formula() -> None:
    """Per block with c channels in, e = c * expansion inside, d out: two 1x1, one depthwise 3x3,
    three BN; stem and last layer.
    """
    total, c = 27 * 16 + 2 * 16, 16
    for expansion, full, count in (
        (1, 16, 1),
        (6, 24, 2),
        (6, 32, 3),
        (6, 64, 4),
        (6, 96, 3),
        (6, 160, 3),
        (6, 320, 1),
    ):
        for _ in range(count):
            e, d = c * expansion, full // 2
            total += c * e + 9 * e + e * d + 2 * (e + e + d)
            c = d
    assert size("mobilenetv2x0.5") == total + 1280 * c + 2 * 1280 + 1281 * 10


@pytest.mark.parametrize("text, a", [("0.5", 8), ("0.25", 4), ("2", 32)])
def test_width_multiplier_scales_every_stage(text: str, a: int) -> None:
    assert size(f"resnet8x{text}") == resnet_formula(8, a)
    assert build(f"resnet8x{text}", 10).feature_channels == 4 * a


def test_no_stage_has_fewer_than_four_channels() -> None:
    features = build("resnet8x0.1", 10)(torch.randn(2, 3, 8, 8)).features
    assert [features[f"stage{k}"].shape[1] for k in (1, 2, 3)] == [4, 4, 6]


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 16, 16), (1, 8, 8)])
def test_forward_backward_for_every_image_size(name: str, shape: tuple[int, int, int]) -> None:
    network = build(name, 7, shape[0])
    output = network(torch.randn(2, *shape))
    assert isinstance(output, Output) and output.logits.shape == (2, 7)
    assert output.feature.shape[:2] == (2, network.feature_channels)
    torch.testing.assert_close(output.feature.mean((2, 3)), output.features["pooled"])
    torch.testing.assert_close(network.head(output.features["pooled"]), output.logits)
    output.logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize(
    "name, shapes",
    [
        ("resnet8", [(16, 32), (32, 16), (64, 8)]),
        ("wrn16_2", [(32, 32), (64, 16), (128, 8)]),
        ("vgg13", [(64, 32), (128, 16), (256, 8), (512, 4), (512, 4)]),
        ("mobilenetv2x0.5", [(72, 16), (96, 8), (288, 4), (1280, 2)]),
    ],
)
def test_stage_features(name: str, shapes: list[tuple[int, int]]) -> None:
    output = build(name, 10)(torch.randn(2, 3, 32, 32))
    stages = [f"stage{k}" for k in range(1, len(shapes) + 1)]
    assert list(output.features) == [f"{s}{end}" for s in stages for end in ("_pre", "")] + [
        "pooled"
    ]
    assert output.feature is output.features[stages[-1]]
    for stage, (channels, side) in zip(stages, shapes, strict=True):
        assert output.features[stage].shape == (2, channels, side, side)
        torch.testing.assert_close(relu(output.features[f"{stage}_pre"]), output.features[stage])
        assert output.features[f"{stage}_pre"].min() < 0  # no ReLU in place has been over it


def test_wrn_is_the_textbook_network() -> None:
    """The forward pass written once more, from the paper's block, on the same weights."""
    network = build("wrn16_2", 10).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1), nn.init.uniform_(module.bias, -1, 1)
    images = torch.randn(2, 3, 16, 16)
    x = network.conv(images)
    for stage in network.stages:
        for place, block in enumerate(stage):
            active = relu(block.norm1(x))
            thin = active[:, :, :: block.stride, :: block.stride]
            x = block.conv2(relu(block.norm2(block.conv1(active)))) + (
                block.shortcut(thin) if place == 0 else x
            )
    expected = network.head(avg_pool2d(relu(network.norm(x)), 4).flatten(1))
    torch.testing.assert_close(network(images).logits, expected)


def test_mobilenet_is_the_textbook_network() -> None:
    """The forward pass written once more, block by block as in its paper, on the same weights."""
    network = build("mobilenetv2x0.5", 10).eval()
    images = torch.randn(2, 3, 32, 32)
    x, shapes = network.stem(images), []
    for block in network.blocks:
        y = block.depthwise(relu(block.expand(x)))
        x = x + y if y.shape == x.shape else y
        shapes.append(tuple(x.shape[1:]))
    expected = network.head(relu(network.last(x)).mean((2, 3)))
    torch.testing.assert_close(network(images).logits, expected)
    assert [shapes[i] for i in (0, 2, 5, 9, 12, 15, 16)] == [
        (8, 16, 16),
        (12, 16, 16),
        (16, 8, 8),
        (32, 4, 4),
        (48, 4, 4),
        (80, 2, 2),
        (160, 2, 2),
    ]


def test_shapes_of_features_are_known_without_computing_them() -> None:
    for name in SMALL:
        features = build(name, 10)(torch.randn(2, 3, 16, 16)).features
        assert feature_shapes(name, (3, 16, 16)) == {
            k: tuple(v.shape[1:]) for k, v in features.items()
        }
    state = torch.get_rng_state()
    feature_shapes("resnet14", (3, 24, 24))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", SMALL)
def test_one_forward_updates_every_statistic_once(name: str) -> None:
    network = build(name, 10)
    network(torch.randn(2, 3, 16, 16))
    assert all(
        m.num_batches_tracked == 1 for m in network.modules() if isinstance(m, nn.BatchNorm2d)
    )


@pytest.mark.parametrize("name", SMALL)
def test_no_layer_is_idle(name: str) -> None:
    """Every parameter moves the logits, except biases that the next BN takes away again: VGG's, and
    those of MobileNet's linear layers.
    """
    network = build(name, 10)
    (network(torch.randn(4, 3, 16, 16)).logits * torch.randn(4, 10)).sum().backward()
    dead = [n for n, p in network.named_parameters() if p.grad.abs().max() < 1e-5]
    assert all(
        n.endswith({"vgg13": "bias", "mobilenetv2x0.5": "depthwise.4.bias"}[name]) for n in dead
    )


@pytest.mark.parametrize("name", SMALL)
def test_nothing_depends_on_the_data(name: str) -> None:
    """On the meta device there are no values: whatever would wait for the device, or branch on a
    value, raises.
    """
    with torch.device("meta"):
        network = build(name, 10)
        network(torch.randn(2, 3, 32, 32)).logits.sum().backward()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", SMALL)
def test_cuda_graph_gives_the_same_logits(name: str) -> None:
    network, images = build(name, 10).cuda().eval(), torch.randn(4, 3, 32, 32, device="cuda")
    side = torch.cuda.Stream()
    with torch.cuda.stream(side), torch.no_grad():
        for _ in range(3):
            network(images)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        captured = network(images).logits
    images.normal_()
    graph.replay()
    with torch.no_grad():
        torch.testing.assert_close(captured, network(images).logits)


def test_he_initialisation() -> None:
    torch.manual_seed(0)
    weight = build("vgg13", 10).stages[4][0].weight
    assert weight.std().item() == pytest.approx((2 / (9 * 512)) ** 0.5, rel=0.01)


def test_the_seed_determines_the_weights() -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return nn.utils.parameters_to_vector(build("resnet8", 10).parameters())

    assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize(
    "name", [*SMALL, "resnet110", "wrn46_4", "resnet20x2", "resnet20x1.5", "mobilenetv2x0.5"]
)
def test_good_names(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", BAD)
def test_bad_names_are_refused_with_the_list(name: str) -> None:
    for call in (check_name, lambda n: build(n, 10)):
        with pytest.raises(ValueError, match=r"resnet<d>.*wrn<d>_<k>.*vgg13"):
            call(name)


@pytest.mark.parametrize(
    "wrong, meant", [("wrn_16_2", "wrn16_2"), ("ResNet20", "resnet20"), ("vgg-13", "vgg13")]
)
def test_another_spelling_of_a_name_is_told_ours(wrong: str, meant: str) -> None:
    with pytest.raises(ValueError, match=rf"'{wrong}' is not known \(did you mean '{meant}'\?\)"):
        check_name(wrong)


# ---------------------------------------------------------------------- what this torch cannot do


@pytest.mark.parametrize(
    "name",
    ["resnet8x0.25", "resnet14x0.5", "resnet20", "wrn16_2", "wrn10_1", "vgg13", "mobilenetv2x0.5"],
)
def test_no_pointwise_convolution_has_a_stride(name):
    """PyTorch 2.14's gradient of one with few channels writes outside its memory; see
    `networks.common.thin`.
    """
    found = [
        m for m in build(name, 10).modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)
    ]
    assert all(convolution.stride == (1, 1) for convolution in found)


def test_a_projection_is_the_strided_convolution():
    inputs = torch.randn(2, 16, 9, 8)
    projection = Projection(16, 32, 2).eval()
    expected = torch.conv2d(inputs, projection[0].weight, stride=2) / (1 + 1e-5) ** 0.5
    assert torch.allclose(projection(inputs), expected, atol=1e-5)
