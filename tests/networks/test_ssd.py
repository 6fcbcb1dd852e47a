"""SSD: torchvision's default boxes, loss, and selection of detections, on the same numbers."""

import pytest
import torch
from made import lived, size
from torch import Tensor
from torchvision.models.detection import _utils, ssd
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.ops import box_iou

from iekd import networks
from iekd.method.detection import ssd_loss
from iekd.method.features import Batch
from iekd.networks.ssd import corners, decode, default_boxes, detections, encode
from iekd.speed import precision
from iekd.speed.fold import fold
from iekd.speed.fuse import fuse

SMALL = ["ssd_resnet10x0.0625_3x3", "ssd_resnet10x0.25_3x3"]
NAME, CLASSES, SIDE = SMALL[0], 3, 64


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def made(batch: int = 4, spread: float = 3) -> networks.Output:
    """An output of random logits."""
    network = networks.build(NAME, CLASSES)
    output = network(torch.randn(batch, 3, SIDE, SIDE))
    return output._replace(logits=spread * torch.randn_like(output.logits))


def some_targets(batch: int = 4, places: int = 7) -> Tensor:
    """Boxes of all sizes; the first image has none, the second as many as there is place for."""
    centre, side = torch.rand(batch, places, 2), 0.05 + 0.5 * torch.rand(batch, places, 2)
    boxes = corners(torch.cat([centre, side], -1)).clamp(0, 1)
    count = torch.randint(0, places + 1, (batch, 1))
    count[:2] = torch.tensor([[0], [places]])
    label = torch.randint(1, CLASSES + 1, (batch, places)) * (torch.arange(places) < count)
    return torch.cat([label[..., None], boxes], -1) * (label > 0)[..., None]


def theirs() -> ssd.SSD:
    """torchvision's detector, of which only arithmetic is used: no weights, no backbone."""
    generator = DefaultBoxGenerator([[2]] * 3, scales=[0.07, 0.16, 0.34, 0.6])
    head = torch.nn.Identity()
    return ssd.SSD(torch.nn.Identity(), generator, (SIDE, SIDE), CLASSES + 1, head=head)


def their_boxes(output: networks.Output) -> Tensor:
    grids = [[*output.features[f"stage{k}"].shape[2:]] for k in (2, 3, 4)]
    return theirs().anchor_generator._grid_default_boxes(grids, [SIDE, SIDE])


def test_default_boxes_are_torchvisions() -> None:
    output = made()
    torch.testing.assert_close(default_boxes(output), their_boxes(output))
    assert len(default_boxes(output)) == 4 * (16**2 + 8**2 + 4**2) == output.logits.shape[1]


def test_a_box_comes_back_from_its_offsets() -> None:
    defaults = default_boxes(made())[:20]
    boxes = corners(torch.cat([torch.rand(20, 2), 0.1 + torch.rand(20, 2)], 1))
    torch.testing.assert_close(decode(encode(boxes, defaults), defaults), boxes)


def test_the_loss_is_torchvisions() -> None:
    """Value and gradient, on images with no box, with few and with as many as there is place for."""
    model, matcher = theirs(), _utils.SSDMatcher(0.5)
    for trial in range(20):
        torch.manual_seed(trial)
        output, targets = made(spread=1 + trial / 5), some_targets()
        logits = [output.logits.clone().requires_grad_() for _ in range(2)]
        anchors = corners(their_boxes(output)) * SIDE
        listed, matches = [], []
        for each in targets:
            real = each[each[:, 0] > 0]
            listed.append({"labels": real[:, 0].long(), "boxes": real[:, 1:] * SIDE})
            none = torch.full((len(anchors),), -1)
            found = matcher(box_iou(real[:, 1:] * SIDE, anchors)) if len(real) else none
            matches.append(found)
        said = {"bbox_regression": logits[0][..., -4:], "cls_logits": logits[0][..., :-4]}
        wanted = sum(model.compute_loss(listed, said, [anchors] * 4, matches).values())
        goal = Batch(targets, targets).goal(output._replace(logits=logits[1]))
        goal.backward(), wanted.backward()
        torch.testing.assert_close(goal, wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(logits[1].grad, logits[0].grad, rtol=1e-4, atol=1e-6)


def test_images_without_boxes_have_a_finite_loss() -> None:
    output = made()
    assert ssd_loss(output, torch.zeros(4, 5, 5)).isfinite()


def test_nothing_of_the_loss_reads_a_value() -> None:
    """Fake tensors have none: a CUDA graph can take it."""
    from torch._subclasses import FakeTensorMode

    output, targets = made(), some_targets()
    default_boxes(output)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = output._replace(logits=mode.from_tensor(output.logits.requires_grad_()))
        ssd_loss(fake, mode.from_tensor(targets)).backward()


def test_detections_are_torchvisions() -> None:
    output = made()
    output = output._replace(logits=output.logits.double())  # no two scores are equal
    said = {"bbox_regression": output.logits[..., -4:], "cls_logits": output.logits[..., :-4]}
    anchors = corners(their_boxes(output)) * SIDE
    wanted = theirs().postprocess_detections(said, [anchors] * 4, [(SIDE, SIDE)] * 4)
    for ours, other in zip(detections(output), wanted, strict=True):
        assert len(ours["scores"]) == 200 and torch.equal(ours["labels"], other["labels"])
        torch.testing.assert_close(ours["scores"], other["scores"])
        torch.testing.assert_close(ours["boxes"] * SIDE, other["boxes"], rtol=1e-4, atol=1e-3)


# ---------------------------------------------------------------------- the network


@pytest.mark.parametrize("name, count", [(SMALL[0], 35_796), (SMALL[1], 372_144)])
def test_size(name: str, count: int) -> None:
    assert size(name, classes=3) == count


def test_the_distilled_stage_is_the_third() -> None:
    network = networks.build(SMALL[1], CLASSES)
    output = network(torch.randn(2, 3, SIDE, SIDE))
    assert output.feature is output.features["stage3"] and network.feature_channels == 64
    assert output.feature.shape == (2, 64, 8, 8) and "pooled" not in output.features
    assert set(network.norms) == {f"stage{k}" for k in range(1, 5)}
    output.logits.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in network.parameters())


@torch.no_grad()
def test_the_frozen_forms_say_the_same() -> None:
    network = lived(networks.build(NAME, CLASSES))
    images = torch.randn(2, 3, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
    wanted = network(images)
    for form in (fold(network), fuse(fold(network))):
        output = form(images)
        assert list(output.features) == list(wanted.features)
        torch.testing.assert_close(output.logits, wanted.logits, rtol=1e-3, atol=1e-4)
    half = precision.train_in_bf16(networks.build(NAME, CLASSES))(images)
    assert half.logits.dtype == torch.float32


@pytest.mark.parametrize("name", ["ssd_resnet20", "ssd_vgg13", "ssd_resnet18x1", "ssd_"])
def test_bad_names(name: str) -> None:
    with pytest.raises(ValueError, match="ssd_resnet18"):
        networks.check_name(name)
