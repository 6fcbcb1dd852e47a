"""Active neurons: planted subspaces and linear models with a known answer, and what the count does
and does not depend on.
"""

import numpy as np
import pytest
import torch
from committed import committed_teacher
from sklearn.decomposition import PCA
from torch import Tensor, nn

from iekd.analysis import neurons
from iekd.analysis.neurons import (
    ablation,
    covariance,
    directions,
    loss_gradients,
    moment,
    participation,
)
from iekd.method.split import channel_split
from iekd.networks import Output
from iekd.networks.common import finish

NEARLY_ALL = 1 - 1e-9


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def pictures(count: int) -> tuple[Tensor, Tensor]:
    """Normalised images with blobs in them, and labels."""
    blobs = nn.functional.interpolate(torch.randn(count, 3, 4, 4), size=16, mode="bicubic")
    return blobs, torch.randint(0, 10, (count,))


class Head(nn.Module):
    """A network whose last feature is the image, with or without a ReLU behind it."""

    def __init__(self, channels: int, classes: int, relu: bool):
        super().__init__()
        self.head, self.relu = nn.Linear(channels, classes), relu

    def forward(self, images: Tensor) -> Output:
        before = images * 1
        after = before.relu() if self.relu else before
        return finish(self.head, {"stage1_pre": before, "stage1": after})


# ---------------------------------------------------------------------- counting


@pytest.mark.parametrize("rank", [1, 5, 12])
def test_a_loss_that_responds_to_so_many_directions_has_so_many_active_neurons(rank):
    feature = torch.randn(300, 20, 2, 2, dtype=torch.double, requires_grad=True)
    plane = torch.linalg.qr(torch.randn(20, rank, dtype=torch.double)).Q
    seen = torch.einsum("nchw,cr->nrhw", feature, plane)
    (gradients,) = torch.autograd.grad((seen**4).sum(), feature)
    matrix = moment(gradients)
    assert directions(matrix, NEARLY_ALL) == rank
    assert directions(moment(gradients, positions=False), NEARLY_ALL) == 4 * rank
    assert torch.allclose(plane @ (plane.T @ matrix), matrix)  # and they are the planted ones


def test_eigenvalues_that_are_typed_in():
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.double)).Q
    matrix = rotation @ torch.tensor([50.0, 30, 15, 4, 1]).double().diag() @ rotation.T
    assert [directions(matrix, share) for share in (0.49, 0.51, 0.79, 0.94, 0.96, 0.995)] == [
        1,
        2,
        2,
        3,
        4,
        5,
    ]
    assert participation(matrix) == pytest.approx(100**2 / (50**2 + 30**2 + 15**2 + 4**2 + 1))
    assert participation(torch.eye(7)) == pytest.approx(7)
    zero, empty = torch.zeros(3, 3), torch.zeros(0, 0)
    for matrix in (zero, empty):
        assert directions(matrix, 0.95) == participation(matrix) == 0


@pytest.mark.parametrize("relu", [False, True])
def test_gradients_of_a_linear_model_are_the_closed_form(relu):
    network, images, labels = (
        Head(6, 4, relu).double(),
        torch.randn(900, 6, 3, 3).double(),
        torch.randint(0, 4, (900,)),
    )
    found = loss_gradients(network, images, labels)
    feature = images.relu() if relu else images
    surprise = network(images).logits.softmax(1) - nn.functional.one_hot(labels, 4)
    wanted = (surprise @ network.head.weight / 9)[..., None, None] * (feature == images)
    assert torch.allclose(found, wanted)
    flat = wanted.detach().numpy().transpose(0, 2, 3, 1).reshape(-1, 6)
    assert np.allclose(moment(found), sum(np.outer(g, g) for g in flat) / len(flat))
    assert directions(moment(found), NEARLY_ALL) == (6 if relu else 3)  # 3 = classes - 1


def test_gradients_of_a_batch_are_those_of_its_images_alone():
    network, (images, labels) = committed_teacher(), pictures(6)
    together = loss_gradients(network, images, labels)
    for k in range(6):
        alone = loss_gradients(network, images[k : k + 1], labels[k : k + 1])
        assert torch.allclose(alone[0], together[k], atol=1e-6)
    assert together.shape == (6, 64, 4, 4)
    assert all(p.grad is None for p in network.parameters())


# ---------------------------------------------------------------------- a trained network


@pytest.fixture(scope="module")
def trained():
    """A trained network with images and their gradients before the last ReLU."""
    torch.manual_seed(0)
    network, (images, labels) = committed_teacher(), pictures(800)
    return network, images, labels, loss_gradients(network, images, labels)


def test_behind_the_last_relu_there_are_fewer_directions_than_classes(trained):
    network, images, labels, before = trained
    after = loss_gradients(network, images[:200], labels[:200], "stage3")
    assert directions(moment(after), NEARLY_ALL) == 9
    assert directions(moment(before[:200]), 0.95) > 20


def test_channels_are_counted_alike_by_half_of_the_images_and_neurons_are_not(trained):
    gradients = trained[3]
    counts = [directions(moment(gradients[:n]), 0.95) for n in (400, 800)]
    assert abs(counts[0] - counts[1]) <= 1
    neurons = [directions(moment(gradients[:n], positions=False), 0.95) for n in (400, 800)]
    assert neurons[1] > neurons[0] + 20


def test_a_rotation_changes_nothing_and_the_scale_of_a_channel_does(trained):
    gradients = trained[3][:200].double()
    rotation = torch.linalg.qr(torch.randn(64, 64, dtype=torch.double)).Q
    turned = torch.einsum("nchw,cd->ndhw", gradients, rotation)
    assert directions(moment(turned), 0.95) == directions(moment(gradients), 0.95)
    assert participation(moment(turned)) == pytest.approx(participation(moment(gradients)))
    stretched = gradients * torch.where(torch.arange(64) == 3, 30.0, 1.0)[:, None, None]
    assert directions(moment(stretched), 0.95) < directions(moment(gradients), 0.95)


def test_numbers_of_a_network_and_of_its_halves(trained):
    network, images, labels, gradients = trained
    halves = dict(zip("ab", channel_split(64, 0.5, "random", 3), strict=True))
    found = neurons.measure(network, images, labels, {"all": slice(None), **halves})
    with torch.no_grad():
        pooled = network(images).features["pooled"]
        costs = ablation(network.head, pooled, labels)
    for name, part in {"all": torch.arange(64), **halves}.items():
        assert found[f"active_{name}"] == directions(moment(gradients[:, part]), 0.95)
        pca = PCA(svd_solver="full").fit(pooled[:, part].double().numpy())
        assert found[f"pca99_{name}"] == (pca.explained_variance_ratio_.cumsum() < 0.99).sum() + 1
        values = pca.explained_variance_
        ratio = values.sum() ** 2 / (values**2).sum()
        assert found[f"participation_{name}"] == pytest.approx(ratio, rel=1e-4)
        assert found[f"ablation_{name}"] == sum(cost > 0.1 for cost in costs[part].tolist())
    assert found["active_a"] < found["active_all"] and found["active_b"] < found["active_all"]


def test_a_head_that_reads_three_channels_leaves_at_most_three_directions(trained):
    network, images, labels, gradients = trained
    drawn = committed_teacher()
    nn.init.zeros_(drawn.head.weight)
    with torch.no_grad():
        drawn.head.weight[0, :3] = 1
    found = loss_gradients(drawn, images[:200], labels[:200])
    assert directions(moment(found), NEARLY_ALL) <= 3 < directions(moment(gradients[:200]), 0.95)


# ---------------------------------------------------------------------- ablation and covariance


def test_ablation_is_the_error_with_the_channel_at_its_mean():
    head, pooled = nn.Linear(5, 3), torch.randn(200, 5) + 2
    with torch.no_grad():
        head.weight[:, 4] = 0
        labels = head(pooled).argmax(1)
        labels[:20] = torch.randint(0, 3, (20,))
        found = ablation(head, pooled, labels)
        before = (head(pooled).argmax(1) != labels).double().mean()
        for k in range(5):
            replaced = pooled.clone()
            replaced[:, k] = pooled[:, k].mean()
            wanted = 100 * ((head(replaced).argmax(1) != labels).double().mean() - before)
            assert found[k].item() == pytest.approx(wanted.item())
    assert found[4] == 0 and found.max() > 1


def test_covariance():
    pooled = torch.randn(50, 4) * 3 + 100
    assert np.allclose(covariance(pooled), np.cov(pooled.double().numpy().T, bias=True), atol=1e-4)
