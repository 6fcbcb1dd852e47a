"""ImageNet from its files, read while training or squashed once, on 24 JPEGs in its layout."""

import shutil

import jpegs
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import CenterCrop, Compose, Resize

from iekd import data
from iekd.cli import main
from iekd.data import imagenet, readers, sources, stream
from iekd.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    yield jpegs.in_folder(tmp_path / "pictures", monkeypatch)
    sources._load.cache_clear()


def first(folder):
    return folder / "train" / jpegs.CLASSES[0] / f"{jpegs.CLASSES[0]}_0.JPEG"


# ---------------------------------------------------------------------- as they are


def test_classes_are_numbered_as_torchvision_does(folder):
    found = data.load(jpegs.run())
    assert found.train.labels.tolist() == sorted(list(range(3)) * 8) and found.num_classes == 3
    assert found.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert found.train.images.shape == (24, 3, 32, 32)
    assert data.load(jpegs.run(image_size=0)).test.images.shape == (6, 3, 224, 224)


def test_the_middle_is_that_of_torchvision(folder):
    """256 pixels of the shorter side, then the middle 224, up to the rounding of an edge."""
    theirs = Compose([Resize(256, antialias=True), CenterCrop(224)])
    with Image.open(first(jpegs.write(folder.parent / "large", (640, 512)))) as opened:
        image = stream.F.pil_to_tensor(opened)
    top, left, height, width = stream.box(image, stream.CENTRE)
    assert (top, left, height, width) == (32, 96, 448, 448)
    side = [224, 224]
    ours = stream.F.resized_crop(image, top, left, height, width, side, antialias=True)
    assert (ours.int() - theirs(image).int()).abs().max() <= 1


def test_a_row_of_the_plan_says_all_of_an_image(folder):
    images = data.load(jpegs.run()).train.images
    plan = torch.tensor([[0, 0, 0, 3], [5, 5, 6, 5], [9, 1, 9, 9], [0, 1, 0, 0]])
    torch.manual_seed(3)
    state = torch.get_rng_state()
    images.expect([plan[:, :2], plan[:, 2:]])
    found = torch.cat([images.next(), images.next()])
    assert torch.equal(torch.get_rng_state(), state)
    assert found.shape == (4, 3, 32, 32) and found.dtype == torch.uint8
    assert torch.equal(found[0].flip(-1), found[1]) and not torch.equal(found[0], found[2])


def test_crops_have_the_usual_shares_and_ratios():
    image = torch.zeros(3, 375, 500, dtype=torch.uint8)
    boxes = torch.tensor([stream.box(image, number) for number in range(2000)]).double()
    share = boxes[:, 2] * boxes[:, 3] / (375 * 500)
    ratio = boxes[:, 3] / boxes[:, 2]
    assert 0.07 < share.min() < 0.1 and share.max() > 0.9
    assert 0.74 < ratio.min() < 0.78 and 1.28 < ratio.max() < 1.35
    assert (boxes[:, 0] + boxes[:, 2] <= 375).all() and (boxes[:, 1] + boxes[:, 3] <= 500).all()


def test_parts_of_the_images_are_the_same_images(folder):
    images = data.load(jpegs.run()).train.images
    everything = torch.cat([*images.split(7)])
    assert torch.equal(everything, images[:]) and torch.equal(everything[3:9], images[3:9])
    some = torch.tensor([20, 3, 3])
    assert torch.equal(everything[some], images[some])
    held = data.load(jpegs.run(validation_images=6, train_images=9))
    assert held.validation.labels.tolist() == [0, 0, 1, 1, 2, 2] and len(held.train.images) == 9
    order = readers.balanced_order(data.load(jpegs.run()).train.labels)[:6].sort().values
    assert torch.equal(held.validation.images[:], everything[order])


def test_grey_cmyk_and_png_files_are_decoded(folder):
    """ImageNet has all of these under the name JPEG."""
    names = sorted((folder / "train" / jpegs.CLASSES[1]).iterdir())
    image = Image.open(names[0]).convert("RGB")
    image.convert("L").save(names[0], "JPEG")
    image.convert("CMYK").save(names[1], "JPEG")
    image.save(names[2], "PNG")
    images = data.load(jpegs.run()).train.images[8:11].double()
    assert (images - images[2]).abs().mean() < 12  # but for colour


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_damaged_file_is_named(folder, monkeypatch, workers):
    monkeypatch.setenv("IEKD_WORKERS", workers)
    first(folder).write_bytes(first(folder).read_bytes()[:30])
    for use in (lambda: data.load(jpegs.run()).train.images[:], lambda: pack(folder)):
        with pytest.raises(DataError, match="^/.*n01440764_0.JPEG: cannot be decoded .*Replace it"):
            use()


@pytest.mark.parametrize("word", ["two", "-1", "1.5"])
def test_a_wrong_number_of_workers_is_refused(monkeypatch, word):
    monkeypatch.setenv("IEKD_WORKERS", word)
    with pytest.raises(ConfigError, match=f"IEKD_WORKERS: '{word}' .* choose a number from 0"):
        data.load(jpegs.run())


def test_other_files_are_left_alone_and_a_changed_one_is_seen(folder):
    before = sources.load_raw("imagenet").checksum
    (folder / "train" / jpegs.CLASSES[0] / "._n01440764_0.JPEG").write_text("x")
    (folder / "train" / "README").write_text("x")
    sources._load.cache_clear()
    assert sources.load_raw("imagenet").checksum == before
    first(folder).write_bytes(first(folder).read_bytes() + b"x")
    sources._load.cache_clear()
    assert sources.load_raw("imagenet").checksum != before


def test_half_of_it_is_refused(folder):
    first(folder).unlink()
    with pytest.raises(DataError, match="imagenet/train: 23 instead of 24 images.*my-NAME"):
        data.load(jpegs.run())


def test_where_it_is_missing_the_way_out_is_said(folder, capsys):
    shutil.rmtree(folder / "val" / jpegs.CLASSES[2])
    for name, hint in (
        ("imagenet", "train/ and val/"),
        ("imagenet64", "data pack imagenet64 DEST"),
    ):
        with pytest.raises(DataError, match=f"^{name}: not in .*{hint}"):
            data.load(jpegs.run(dataset=name))
    assert main.main(["data", "list"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "n01440764" in lines["imagenet"] and "data pack" in lines["imagenet64"]


def test_the_folder_itself_may_be_named(folder, capsys):
    assert main.main(["data", "list", "--root", str(folder)]) == 0
    assert f"imagenet  {folder}  \n" in capsys.readouterr().out
    assert len(sources.load_raw("imagenet", folder).train_labels) == 24


# ---------------------------------------------------------------------- squashed


def pack(folder):
    return sources.pack("imagenet64", folder.parent / "packed", folder)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_it_is_squashed_by_area(folder, monkeypatch, workers):
    monkeypatch.setenv("IEKD_WORKERS", workers)
    monkeypatch.setattr(imagenet, "BATCH", 7)
    assert sorted(path.name for path in pack(folder).parent.iterdir()) == ["imagenet64"]
    found = data.load(jpegs.run(dataset="imagenet64", image_size=0), folder.parent / "packed")
    assert found.train.images.shape == (24, 3, 64, 64) and found.test.images.shape == (6, 3, 64, 64)
    assert found.train.labels.tolist() == sorted(list(range(3)) * 8) and found.pad == 8
    for images, split in ((found.train.images, "train"), (found.test.images, "val")):
        files = sorted((folder / split).rglob("*.JPEG"))
        expected = [readers.squash(Image.open(path)) for path in files]
        assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), np.stack(expected))


def test_nothing_of_it_is_copied_where_all_images_are_used(folder):
    raw = sources.load_raw("imagenet64", pack(folder).parent)
    found = data.load(jpegs.run(dataset="imagenet64", image_size=0), folder.parent / "packed")
    assert found.train.images.data_ptr() == raw.train_images.data_ptr()


@pytest.mark.parametrize("name", [*(f"{part}.npy" for part in imagenet.PARTS), "imagenet64.sha256"])
def test_damage_is_noticed(folder, name):
    path = pack(folder) / name
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="imagenet64: cannot be used .*iekd data pack imagenet64"):
        sources.load_raw("imagenet64", path.parents[1])


def test_what_cannot_be_packed_is_refused(folder, capsys):
    pack(folder)
    with pytest.raises(DataError, match="packed/imagenet64: exists already"):
        pack(folder)
    with pytest.raises(ConfigError, match="what can be packed is imagenet64"):
        sources.pack("imagenet", folder)
    assert main.main(["data", "pack", "imagenet64", "/proc/none", "--root", str(folder)]) == 1
    assert "/proc/none/imagenet64: cannot be written" in capsys.readouterr().err
