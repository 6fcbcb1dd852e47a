"""The vectorised crop and flip against a slow loop over images."""

import pytest
import torch
import torch.nn.functional as F

from iekd.data.augment import Draws, crop_and_flip, draw, normalise


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(n=50, channels=3, height=8, width=8):
    return torch.randint(
        0, 256, (n, channels, height, width), dtype=torch.uint8, generator=generator(1)
    )


def one_by_one(images, draws, pad):
    """Pad, crop and mirror as the textbook says."""
    result = []
    for image, dy, dx, flip in zip(images, *(d.tolist() for d in draws), strict=True):
        padded = F.pad(image[None].float(), (pad,) * 4, mode="reflect")[0].byte()
        crop = padded[:, dy : dy + image.shape[1], dx : dx + image.shape[2]]
        result.append(crop.flip(2) if flip else crop)
    return torch.stack(result)


@pytest.mark.parametrize(
    "channels, height, width, pad", [(3, 32, 32, 4), (1, 8, 8, 1), (1, 28, 28, 3), (3, 6, 9, 5)]
)
@pytest.mark.parametrize("flip", [False, True])
def test_equals_the_loop(channels, height, width, pad, flip):
    images, draws = batch(50, channels, height, width), draw(50, pad, flip, generator())
    found = crop_and_flip(images, draws, pad)
    assert found.dtype == torch.uint8 and torch.equal(found, one_by_one(images, draws, pad))


def test_nothing_to_do_is_the_identity():
    images = batch()
    assert torch.equal(crop_and_flip(images, draw(50, 0, False, generator()), 0), images)
    centred = Draws(torch.full((50,), 2), torch.full((50,), 2), torch.zeros(50, dtype=torch.bool))
    assert torch.equal(crop_and_flip(images, centred, 2), images)


def test_the_same_draws_give_the_same_images():
    """Also where an epoch goes on in the middle: the draws belong to the image, not to the batch it
    comes in.
    """
    images, draws = batch(), draw(50, 2, True, generator())
    again = draw(50, 2, True, generator())
    assert all(torch.equal(a, b) for a, b in zip(draws, again, strict=True))
    index = torch.randperm(50, generator=generator(3))[:20]
    part = crop_and_flip(images[index], draws.at(index), 2)
    assert torch.equal(part, crop_and_flip(images, draws, 2)[index])
    assert any(
        not torch.equal(a, b) for a, b in zip(draws, draw(50, 2, True, generator(1)), strict=True)
    )


def test_every_offset_is_equally_likely():
    draws = draw(90_000, 4, True, generator())
    pairs = (draws.dy * 9 + draws.dx).bincount(minlength=81)
    expected = 90_000 / 81
    assert (
        len(pairs) == 81 and ((pairs - expected).square() / expected).sum() < 131
    )  # chi-square, 80 df, p = 0.0003
    for side in (True, False):
        assert abs((draws.flip == side).float().mean() - 0.5) < 0.01
    assert not draw(1000, 4, False, generator()).flip.any()


def test_the_host_never_looks():
    """Meta tensors have no values: whatever needs one on the host (item, a boolean mask) fails on
    them.
    """
    draws = draw(50, 2, True, generator()).to("meta")
    with pytest.raises(RuntimeError):
        draws.dy[0].item()
    assert crop_and_flip(batch().to("meta"), draws, 2).shape == (50, 3, 8, 8)


def test_normalise():
    images = batch()
    mean, std = (
        torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1),
        torch.tensor([0.5, 0.6, 0.7]).view(1, 3, 1, 1),
    )
    found = normalise(images, mean, std)
    assert found.dtype == torch.float32
    expected = (images.double() / 255 - mean.double()) / std.double()
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-6)
