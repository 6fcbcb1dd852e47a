"""Relevance: scores and maps against closed forms and zennit; what maps are worth, on digits."""

import itertools

import numpy as np
import pytest
import torch
from committed import committed_teacher
from scipy import stats
from tiny import tiny
from torch import Tensor, nn

from iekd import data, networks
from iekd.analysis import relevance
from iekd.analysis.relevance import agreement, cam, delete, scores, with_rules
from iekd.data import augment
from iekd.method.split import channel_split
from iekd.networks import Output
from iekd.networks.common import finish
from iekd.speed.fold import fold
from iekd.training import runner

MEAN, STD = (
    torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1),
    torch.tensor([0.2, 0.25, 0.3]).view(1, 3, 1, 1),
)
BOX = relevance.corners(MEAN, STD)
CIFAR = (
    torch.tensor(data.FACTS["cifar10"].mean).view(1, 3, 1, 1),
    torch.tensor(data.FACTS["cifar10"].std).view(1, 3, 1, 1),
)
HALVES = dict(zip(("inherit", "explore"), channel_split(64, 0.5, "random", 0), strict=True))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def pictures(count: int, mean: Tensor = MEAN, std: Tensor = STD) -> Tensor:
    """Normalised images with blobs in them: no data set is needed to test a rule."""
    blobs = nn.functional.interpolate(torch.rand(count, 3, 4, 4), size=16, mode="bilinear")
    pixels = 255 * (0.7 * blobs + 0.3 * torch.rand(count, 3, 16, 16))
    return augment.normalise(pixels.byte(), mean, std)


def lived(name: str) -> nn.Module:
    """A network whose normalisations shift and scale, some of them backwards."""
    network = networks.build(name, 10)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.3, 2)
            nn.init.uniform_(module.weight, -0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    return network.eval()


def whole(network: nn.Module, images: Tensor, labels: Tensor, box=BOX) -> Tensor:
    return relevance.relevance(network, images, labels, box)["all"]


# ---------------------------------------------------------------------- scores


def test_scores_of_halves_are_the_centred_logit_without_bias():
    network, images, labels = lived("resnet8"), pictures(6), torch.arange(6)
    found = scores(network, images, labels, HALVES)
    with torch.no_grad():
        logits = (network(images).logits - network.head.bias).double()
    wanted = logits[torch.arange(6), labels] - logits.mean(1)
    assert (sum(found.values()) - wanted).abs().max() < 1e-4 * wanted.abs().max()
    assert (found["inherit"] - found["explore"]).abs().min() > 0  # and each is one of its own


def test_a_class_activation_map_sums_to_the_score_of_its_part():
    network, images, labels = committed_teacher(), pictures(6, *CIFAR), torch.arange(6)
    found, wanted = cam(network, images, labels, HALVES), scores(network, images, labels, HALVES)
    for name in HALVES:
        assert found[name].shape == (6, 4, 4)
        missing = found[name].sum((1, 2)) - wanted[name]
        assert missing.abs().max() < 1e-5 * wanted[name].abs().max()


# ---------------------------------------------------------------------- the rules


def test_the_box_holds_every_pixel_and_no_more():
    black, white = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 1, 1)
    for end, pixel in zip(BOX, (black, white), strict=True):
        assert torch.allclose(end, augment.normalise(pixel[None], MEAN, STD))


FAMILIES = ("resnet20", "resnet14x0.5", "wrn16_2", "vgg13", "mobilenetv2x0.5")


@pytest.mark.parametrize("name", FAMILIES)
def test_the_network_with_rules_computes_the_same(name):
    network, images = lived(name), pictures(3)
    inputs = torch.cat([images, *(corner.expand_as(images) for corner in BOX)], dim=1)
    with torch.no_grad():
        wanted, found = network(images), with_rules(network)(inputs)
    assert list(found.features) == list(wanted.features)
    for value, reference in zip(
        (found.logits, *found.features.values()),
        (wanted.logits, *wanted.features.values()),
        strict=True,
    ):
        assert (value - reference).abs().max() <= 2e-5 * reference.abs().max()


@pytest.mark.parametrize("name", FAMILIES)
def test_relevance_sums_to_the_score(name):
    """Of fresh networks: their units have no bias, so that none fires of itself."""
    network, images, labels = networks.build(name, 10).eval(), pictures(4), torch.arange(4)
    wanted = scores(network, images, labels)["all"]
    missing = whole(network, images, labels).sum((1, 2)) - wanted
    assert missing.abs().max() < 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("name", FAMILIES)
def test_no_layer_hands_on_more_than_it_got(name):
    """Whatever the biases: shares are positive and sum to one at most, in residual sums, too."""
    network, images, labels = lived(name), pictures(4), torch.arange(4)
    maps = whole(network, images, labels)
    with torch.no_grad():
        pooled = network(images).features["pooled"]
        got = relevance.contributions(network, pooled, labels).abs().sum(1)
    assert (maps.abs().sum((1, 2)) <= got * (1 + 1e-4)).all()


def test_relevance_of_a_trained_network_sums_to_the_score_and_halves_to_the_whole():
    network, images = committed_teacher(), pictures(20, *CIFAR)
    labels, box = torch.arange(20) % 10, relevance.corners(*CIFAR)
    found, wanted = (
        relevance.relevance(network, images, labels, box, HALVES),
        scores(network, images, labels, HALVES),
    )
    both, scale = whole(network, images, labels, box), sum(wanted.values()).abs().max()
    assert (both.sum((1, 2)) - sum(wanted.values())).abs().max() < 1e-4 * scale
    assert (sum(found.values()) - both).abs().max() < 1e-4 * both.abs().max()
    for name in HALVES:
        assert (found[name].sum((1, 2)) - wanted[name]).abs().max() < 1e-4 * scale
        assert agreement(found[name], both) < 0.95  # a half is not the whole, scaled


class Linear(nn.Module):
    """Two convolutions of one pixel, no ReLU."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.head = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 4, 1), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Output:
        before = self.conv2(self.conv1(images))
        return finish(self.head, {"stage1_pre": before, "stage1": before})


def test_two_linear_layers_against_loops():
    network, images, label = Linear(), pictures(1)[:, :, :1, :1], torch.tensor([2])
    x, low, high = (t.flatten().double().numpy() for t in (images, *BOX))
    (w1, b1), (w2, b2) = (
        (layer.weight.detach().flatten(1).double().numpy(), layer.bias.detach().double().numpy())
        for layer in (network.conv1, network.conv2)
    )
    head = network.head.weight.detach().double().numpy()
    a = w1 @ x + b1
    above = (head[2] - head.mean(0)) * (w2 @ a + b2)

    middle = np.zeros(5)
    for unit, share in enumerate(above):
        positive = np.maximum(w2[unit] * a, 0)
        parts = positive if positive.any() else w2[unit] * a
        middle += share * parts / parts.sum()
    pixels = np.zeros(3)
    for unit, share in enumerate(middle):
        parts = np.where(w1[unit] > 0, w1[unit] * (x - low), w1[unit] * (x - high))
        pixels += share * parts / parts.sum()
    assert whole(network, images, label).item() == pytest.approx(pixels.sum(), rel=1e-4)

    inputs = torch.cat([images, *BOX], dim=1).requires_grad_()
    pooled = with_rules(network)(inputs).features["pooled"]
    gradient = torch.autograd.grad(relevance.contributions(network, pooled, label).sum(), inputs)[0]
    found = (inputs * gradient).detach().view(3, 3).sum(0)  # of each colour
    assert found.numpy() == pytest.approx(pixels, rel=1e-4, abs=1e-6)


def test_a_unit_without_positive_contributions_and_one_without_any():
    layer = nn.Conv2d(3, 1, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([-1.0, -3.0, 2.0]).view(1, 3, 1, 1))
        layer.bias.fill_(10.0)
    for x, wanted in (
        ([1.0, 1.0, 0.0], [1.5, 4.5, 0.0]),
        ([0.0, 0.0, 0.0], [0.0] * 3),
        ([1.0, 1.0, 1.0], [0.0, 0.0, 8.0]),
    ):
        inputs = torch.tensor(x).view(1, 3, 1, 1).requires_grad_()
        y = relevance.ZPlus(layer)(inputs)
        gradient = torch.autograd.grad(y.sum(), inputs)[0]
        assert y.item() == pytest.approx(layer(inputs).item())
        assert (inputs * gradient).flatten().tolist() == pytest.approx(wanted)


# ---------------------------------------------------------------------- against zennit


class Bias(nn.Module):
    def __init__(self, bias: Tensor):
        super().__init__()
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias.view(1, -1, 1, 1)


class ForZennit(nn.Module):
    """A folded ResNet in modules that zennit has rules for; the sum is a convolution of both
    summands.
    """

    def __init__(self, network: nn.Module, side: int, box: tuple[Tensor, Tensor]):
        super().__init__()
        rules = pytest.importorskip("zennit.rules")
        self.network, self.pool = fold(network), nn.AvgPool2d(side)
        self.rule, self.passing = rules.ZPlus, rules.Pass
        rules.Norm().register(self.pool)
        self.stem = self._convolution(self.network.conv, rules.ZBox(low=box[0], high=box[1]))
        blocks = [block for stage in self.network.stages for block in stage]
        self.blocks = nn.ModuleList(self._block(block) for block in blocks)

    def _convolution(self, module: nn.Conv2d, rule) -> nn.Sequential:
        bias, module.bias = Bias(module.bias.detach()), None
        rule.register(module)
        self.passing().register(bias)
        return nn.Sequential(module, bias)

    def _block(self, block: nn.Module) -> nn.ModuleDict:
        channels = block.conv2.out_channels
        both = nn.Conv2d(2 * channels, channels, 1, bias=False)
        both.weight.data = torch.eye(channels).repeat(1, 2)[..., None, None]
        self.rule().register(both)
        relus = nn.ModuleList([nn.ReLU(), nn.ReLU()])
        for relu in relus:
            self.passing().register(relu)
        if not isinstance(block.shortcut, nn.Identity):
            block.shortcut[0] = self._convolution(block.shortcut[0], self.rule())
        convolutions = (
            self._convolution(block.conv1, self.rule()),
            self._convolution(block.conv2, self.rule()),
        )
        return nn.ModuleDict(
            dict(zip(("first", "second"), convolutions, strict=True))
            | dict(shortcut=block.shortcut, both=both, relus=relus)
        )

    def forward(self, images: Tensor) -> Tensor:
        relu = nn.ReLU()
        self.passing().register(relu)
        x = relu(self.stem(images))
        for block in self.blocks:
            residual = block["second"](block["relus"][0](block["first"](x)))
            x = block["relus"][1](block["both"](torch.cat([residual, block["shortcut"](x)], dim=1)))
        return self.pool(x).flatten(1)


def test_relevance_is_that_of_zennit():
    network, images, labels = committed_teacher(), pictures(5, *CIFAR), torch.arange(5)
    box = relevance.corners(*CIFAR)
    reference = ForZennit(network, 4, box)
    inputs = images.clone().requires_grad_()
    pooled = reference(inputs)
    assert torch.allclose(pooled, network(images).features["pooled"], atol=1e-4)
    channels = relevance.contributions(network, pooled, labels).detach()
    for name, part in {"all": slice(None), "explore": HALVES["explore"]}.items():
        above = torch.zeros_like(channels)
        above[:, part] = channels[:, part]
        wanted = torch.autograd.grad(pooled, inputs, above, retain_graph=True)[0].sum(1)
        found = relevance.relevance(network, images, labels, box, {name: part})[name]
        for one, other in zip(found.flatten(1).numpy(), wanted.flatten(1).numpy(), strict=True):
            assert np.corrcoef(one, other)[0, 1] > 0.9999
        assert (found - wanted).abs().max() < 5e-3 * wanted.abs().max()


# ---------------------------------------------------------------------- maps


def test_permuted_channels_with_a_permuted_split_have_the_same_maps():
    network, images, labels = lived("resnet8"), pictures(4), torch.arange(4)
    before = relevance.relevance(network, images, labels, BOX, HALVES)
    order = torch.randperm(64)
    block = network.stages[2][0]
    with torch.no_grad():
        for module in (block.conv2, block.norm2, *block.shortcut):
            for tensor in (*module.parameters(), *(b for b in module.buffers() if b.dim())):
                tensor.copy_(tensor[order].clone())
        network.head.weight.copy_(network.head.weight[:, order].clone())
    moved = {name: order.argsort()[channels] for name, channels in HALVES.items()}
    after = relevance.relevance(network, images, labels, BOX, moved)
    for name in HALVES:
        assert (after[name] - before[name]).abs().max() < 1e-4 * before[name].abs().max()
    unmoved = relevance.relevance(network, images, labels, BOX, HALVES)
    assert agreement(unmoved["inherit"], before["inherit"]) < 0.99


def test_agreement_is_the_mean_of_the_correlations():
    one, other = torch.rand(5, 4, 4), torch.rand(5, 4, 4)
    pairs = zip(one.flatten(1).numpy(), other.flatten(1).numpy(), strict=True)
    wanted = [np.corrcoef(a, b)[0, 1] for a, b in pairs]
    assert agreement(one, other) == pytest.approx(np.mean(wanted), abs=1e-6)
    assert agreement(one, 1e-9 * one + 3e-9) == pytest.approx(1, abs=1e-4)  # scale and shift
    assert agreement(torch.ones(5, 4, 4), other) == 0


def test_deleted_tiles_are_those_of_the_highest_mean():
    images, order = pictures(3), torch.rand(3, 16, 16)
    changed = delete(images, order, 3 / 16, tile=4)
    for image, new, rank in zip(images, changed, order, strict=True):
        means = {}
        for i, j in itertools.product(range(4), repeat=2):
            means[i, j] = rank[4 * i : 4 * i + 4, 4 * j : 4 * j + 4].mean().item()
        gone = sorted(means, key=means.get)[-3:]
        for i, j in means:
            tile = (slice(None), slice(4 * i, 4 * i + 4), slice(4 * j, 4 * j + 4))
            assert torch.equal(new[tile], torch.zeros(3, 4, 4) if (i, j) in gone else image[tile])
    with pytest.raises(ValueError, match="tile: 5 does not divide images of 16 x 16 pixels"):
        delete(images, order, 0.5, tile=5)


def test_the_centre_goes_first():
    images = pictures(2)
    gone = delete(torch.ones_like(images), relevance.centre(images), 0.3)[1, 0] == 0
    rows, columns = np.indices((16, 16)) - 7.5
    distance = torch.tensor(rows**2 + columns**2)
    assert gone.sum() == round(0.3 * 256) and distance[gone].max() <= distance[~gone].min()


# ---------------------------------------------------------------------- what maps are worth


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Two trained teachers, a student, and test images that none of them saw."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IEKD_RUNS", str(tmp_path_factory.mktemp("digits")))
        config = tiny("kd", train_images=400, teacher_epochs=6, epochs=6)
        runner.train(config, progress=False)
        run = runner.load_run(config)
        runs = [config.replace(seed=seed).teacher_run() for seed in (0, 1)]
        teachers = [runner.load_network(run) for run in runs]
    images, labels = (
        augment.normalise(run.dataset.test.images[:200], run.mean, run.std),
        run.dataset.test.labels[:200],
    )
    return teachers, run.learner["student"], images, labels, relevance.corners(run.mean, run.std)


def test_maps_depend_on_class_image_and_weights(digits):
    (teacher, other), student, images, labels, box = digits
    maps = {kind: m["all"] for kind, m in relevance.maps_of(teacher, images, labels, box).items()}
    own = maps["relevance"]
    assert torch.equal(own, relevance.relevance(teacher, images, labels, box)["all"])
    assert torch.equal(maps["cam"], relevance.cam(teacher, images, labels)["all"])
    found = relevance.floors(teacher, other, images, labels, box, own)
    assert found["ceiling"] > found["floor_image"] > found["floor_class"]
    assert found["ceiling"] > 0.3 + found["floor_stage"]
    assert abs(found["floor_stage"]) < 0.3
    halves = dict(zip("ab", channel_split(16, 0.5, "random", 0), strict=True))
    numbers = relevance.compare(student, maps, images, labels, box, halves)
    untrained = relevance.random_last_stage(student)
    drawn = relevance.compare(untrained, maps, images, labels, box, halves)
    assert numbers["relevance_teacher"] > 0.2 + drawn["relevance_teacher"]
    parts = relevance.relevance(student, images, labels, box, halves)
    assert numbers["relevance_a"] == pytest.approx(agreement(parts["a"], own), abs=1e-6)
    assert numbers["relevance_halves"] == pytest.approx(agreement(parts["a"], parts["b"]), abs=1e-6)


def test_a_last_stage_drawn_anew_leaves_the_network_and_the_random_numbers_alone(digits):
    teacher = digits[0][0]
    before, state = {k: v.clone() for k, v in teacher.state_dict().items()}, torch.get_rng_state()
    drawn = relevance.random_last_stage(teacher).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    changed = {name for name, value in drawn.items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("stages.2.") for name in changed)


def test_deletion_by_the_map_costs_more_than_at_random_and_than_by_random_weights(digits):
    (teacher, _), _, images, labels, box = digits
    random = torch.rand(images[:, 0].shape)
    anew = whole(relevance.random_last_stage(teacher), images, labels, box)
    before = scores(teacher, images, labels)["all"]
    after = {}
    for name, order in {
        "teacher": whole(teacher, images, labels, box),
        "random": random,
        "anew": anew,
    }.items():
        changed = delete(images, order, 0.2)
        after[name] = scores(teacher, changed, labels)["all"]
        left = relevance.left(teacher, images, changed, labels)["all"]
        assert left == pytest.approx((after[name].sum() / before.sum()).item(), abs=1e-5)
    for name in ("random", "anew"):
        assert stats.ttest_rel(after["teacher"], after[name], alternative="less").pvalue < 1e-3
