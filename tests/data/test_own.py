"""Images of one's own: a folder of class folders, from the pixels to the table."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import made_up

from iekd import data, records
from iekd.config import RunConfig
from iekd.data import facts
from iekd.errors import ConfigError, DataError
from iekd.sweeps.sweep import sweep

CLASSES = ("daisy", "rose", "tulip")
SMALL = dict(student="resnet8x0.25", epochs=2, image_size=8, batch_size=16)


def images(folder, classes=CLASSES, count=6, size=(12, 12), mode="RGB", end="png"):
    """Write noise with a brightness that tells the classes apart."""
    random = np.random.default_rng(0)
    for split, number in (("train", count), ("test", 2)):
        for label, name in enumerate(classes):
            place = folder / split / name
            place.mkdir(parents=True, exist_ok=True)
            for i in range(number):
                pixels = random.integers(60 * label, 60 * label + 60, (*size[::-1], 3), np.uint8)
                Image.fromarray(pixels).convert(mode).save(place / f"{i}.{end}")
    return folder


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The folder of the data set my-flowers, in $IEKD_DATA."""
    monkeypatch.setenv("IEKD_DATA", str(tmp_path / "pictures"))
    return images(tmp_path / "pictures" / "my-flowers")


def run(**fields):
    return RunConfig.create("smoke", dataset="my-flowers", **{**SMALL, **fields})


def test_what_is_known_without_decoding(mine, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", None)
    known = facts.FACTS["my-flowers"]
    assert (known.num_classes, known.channels, known.side) == (3, 3, 12)
    assert known.train_images == data.image_count(run()) == 18
    assert data.image_shape(run()) == (3, 8, 8)


def test_pixels_labels_and_statistics(mine):
    found = data.load(run())
    assert found.train.images.shape == (18, 3, 8, 8) and found.train.images.dtype == torch.uint8
    assert found.train.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert found.test.labels.tolist() == [0, 0, 1, 1, 2, 2] and found.num_classes == 3
    means = found.train.images.double().mean((0, 2, 3)) / 255
    assert found.mean == pytest.approx(means.tolist(), abs=1e-6)
    whole = data.load(run(image_size=12))
    first = np.asarray(Image.open(mine / "train" / "daisy" / "0.png")).transpose(2, 0, 1)
    assert np.array_equal(whole.train.images[0].numpy(), first)
    assert whole.checksum == found.checksum


def test_validation_images_are_balanced(mine):
    found = data.load(run(validation_images=6))
    assert (
        found.validation.labels.bincount().tolist() == [2, 2, 2] and len(found.train.labels) == 12
    )


def test_jpegs_of_any_size_need_a_side_and_grey_ones_have_one_channel(tmp_path, monkeypatch):
    folder = images(tmp_path / "my-flowers", size=(20, 30), mode="L", end="jpg")
    images(folder, size=(31, 17), mode="L", end="JPEG", count=2)
    monkeypatch.setenv("IEKD_DATA", str(tmp_path))
    assert data.load(run()).train.images.shape == (24, 1, 8, 8)
    for look in (data.load, data.image_shape):
        with pytest.raises(ConfigError, match="my-flowers are not squares of one size, choose"):
            look(run(image_size=0))


def test_neither_the_place_of_the_folder_nor_what_lies_beside_the_images_counts(mine, tmp_path):
    before = data.load(run()).checksum
    (mine / "train" / "daisy" / "Thumbs.db").write_text("x")
    (mine / "train" / ".ipynb_checkpoints").mkdir()
    moved = tmp_path / "elsewhere" / "my-flowers"
    shutil.copytree(mine, moved)
    found = data.load(run(), moved.parent)
    assert found.checksum == before and len(found.train.labels) == 18
    (moved / "train" / "daisy" / "0.png").unlink()
    facts.own.look.cache_clear()
    data.sources._load_own.cache_clear()
    assert data.load(run(), moved.parent).checksum != before


def damaged(folder):
    path = folder / "train" / "rose" / "3.png"
    path.write_bytes(path.read_bytes()[:60])


REFUSED = {
    "has no test/.*Move some images": lambda folder: shutil.rmtree(folder / "test"),
    r"differ in classes \(tulip\)": lambda folder: shutil.rmtree(folder / "test" / "tulip"),
    "rose: has no image": lambda folder: [p.unlink() for p in (folder / "train/rose").iterdir()],
    "3.png: cannot be decoded": damaged,
    "Put images into train/CLASS and test/CLASS": shutil.rmtree,
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_folder_that_will_not_do_is_refused_with_what_to_do(mine, message):
    REFUSED[message](mine)
    with pytest.raises(DataError, match=message):
        data.load(run())


@pytest.mark.parametrize("name", ["mnist", "my", "my-", "My-x", "my-x/../y", "my_x"])
def test_other_names_are_refused(name):
    with pytest.raises(ConfigError, match="dataset: .* is not usable; choose one of digits"):
        RunConfig.create("smoke", dataset=name)


def test_a_list_of_data_sets_names_it(mine):
    assert data.describe()[-1] == ("my-flowers", str(mine), "")


def test_a_record_needs_no_folder(runs):
    """On another machine: the identity says nothing of where the images lie."""
    config = run(method="kd", teacher="resnet8x0.5")
    made_up(config).save()
    assert records.find(config).config.parents()["teacher"].dataset == "my-flowers"
    assert len(records.load(dataset="my-flowers")) == 1 and records.load(dataset="my-own").empty
    assert config.path.startswith("smoke/my-flowers/resnet8x0.5-resnet8x0.25/kd")


def test_a_sweep_trains_on_it(mine):
    runs = [run(), run(method="kd", teacher="resnet8x0.5", teacher_epochs=2)]
    assert {outcome.state for outcome in sweep(runs)} == {"done"}
    assert records.find(runs[0]).data == {
        "name": "my-flowers",
        "checksum": data.load(runs[0]).checksum,
    }
