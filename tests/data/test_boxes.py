"""Images with boxes: reading them from VOC's layout, drawing discs, and turning both together."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from iekd import data
from iekd.data import boxes, dataset, sources
from iekd.data.augment import Draws
from iekd.errors import ConfigError, DataError

THING = """<object><name>{}</name>{}<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>
<ymax>{}</ymax></bndbox></object>"""
BCCD = Path(__file__).resolve().parents[3] / "shared" / "data" / "bccd"


def things(*lines: tuple) -> str:
    found = "".join(THING.format(*line) for line in lines)
    return f"<annotation><size><width>40</width><height>20</height></size>{found}</annotation>"


def write(folder: Path, texts: dict[str, str]) -> None:
    """VOC's layout with one image a split, each brighter than the one before."""
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for number, (split, text) in enumerate(texts.items()):
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text(f"{split}\n")
        Image.new("RGB", (40, 20), (50 * number,) * 3).save(folder / f"JPEGImages/{split}.jpg")
        (folder / "Annotations" / f"{split}.xml").write_text(text)


@pytest.fixture
def bccd(tmp_path, monkeypatch) -> Path:
    """A data set of three images: one to train on, one of validation, one of the test."""
    easy, hard = "<difficult>0</difficult>", "<difficult>1</difficult>"
    texts = {
        "train": things(("RBC", easy, 4, 5, 20, 10), ("WBC", hard, 0, 0, 9, 9)),
        "val": things(("Platelets", "", 10, 0, 40, 20), ("RBC", easy, 7, 7, 7, 7)),
        "test": things(),
    }
    folder = tmp_path / "root" / "bccd"
    write(folder, texts)
    monkeypatch.setenv("IEKD_DATA", str(folder.parent))
    sources._load_boxes.cache_clear()
    return folder


def selection(name: str, held: int, size: int = 16) -> SimpleNamespace:
    return SimpleNamespace(dataset=name, train_images=0, validation_images=held, image_size=size)


def test_annotations_are_read(bccd):
    """Boxes without area, and difficult ones, are left out; the official validation split is what
    is held out.
    """
    found = data.load(selection("bccd", held=1))
    assert found.train.images.shape == (1, 3, 16, 16) and found.boxes[2] == "platelets"
    assert found.train.labels.tolist() == [[pytest.approx([1, 0.1, 0.25, 0.5, 0.5])]]
    assert found.validation.labels.tolist() == [[[3, 0.25, 0, 1, 1]]]
    assert found.test.labels.tolist() == [[[0, 0, 0, 0, 0]]]
    levels = [int(part.images.float().mean()) for part in (found.train, found.validation)]
    assert levels == [0, 50]


def test_two_years_of_voc_are_one_data_set(tmp_path, monkeypatch):
    """The test images are those of 2007: those of 2012 have no public boxes."""
    for year, name in ((2007, "dog"), (2012, "cat")):
        texts = dict.fromkeys(("train", "val", "test"), things((name, "", 0, 0, 20, 20)))
        write(tmp_path / "VOCdevkit" / f"VOC{year}", texts)
    monkeypatch.setenv("IEKD_DATA", str(tmp_path))
    found = data.load(selection("voc", held=2, size=20))
    names = [
        [found.boxes[int(label) - 1] for label in part.labels[:, 0, 0]]
        for part in (found.train, found.validation, found.test)
    ]
    assert names == [["dog", "cat"], ["dog", "cat"], ["dog"]] and found.has_up
    assert [int(each.float().mean()) for each in found.validation.images] == [50, 50]


def test_the_checksum_is_of_the_files(bccd):
    before = sources.load_raw("bccd", size=16).checksum
    sources._load_boxes.cache_clear()
    assert sources.load_raw("bccd", size=8).checksum == before
    (bccd / "Annotations" / "val.xml").write_text(things())
    sources._load_boxes.cache_clear()
    assert sources.load_raw("bccd", size=8).checksum != before


def test_what_cannot_be_read_is_named(bccd):
    (bccd / "Annotations" / "val.xml").write_text("<annotation>")
    with pytest.raises(DataError, match=r"val.xml.*Get bccd again"):
        data.load(selection("bccd", held=1))
    with pytest.raises(ConfigError, match="choose a side in pixels"):
        data.load(selection("bccd", held=1, size=0))
    (bccd / "ImageSets" / "Main" / "val.txt").unlink()
    with pytest.raises(DataError, match=r"val.txt: is missing.*git clone"):
        data.load(selection("bccd", held=1))


@pytest.mark.parametrize("name", ["bccd", "voc"])
def test_data_that_is_missing_says_how_to_get_it(name, tmp_path, monkeypatch):
    monkeypatch.setenv("IEKD_DATA", str(tmp_path))
    sources._load_boxes.cache_clear()
    with pytest.raises(DataError, match=rf"{name}: not in .*IEKD_DATA.*discs"):
        data.load(selection(name, held=0))
    rows = {row.name: row for row in data.describe()}
    assert rows[name].where == "" and "discs" in rows[name].remedy
    assert rows["discs"].where == "drawn by iekd"
    with pytest.raises(ConfigError, match="carry the folder"):
        data.pack(name, tmp_path)


@pytest.mark.skipif(not BCCD.is_dir(), reason="needs BCCD beside the checkout")
def test_the_boxes_of_bccd_are_all_there(monkeypatch):
    """Two without area are dropped: one to train on, one of validation."""
    monkeypatch.setenv("IEKD_DATA", str(BCCD.parent))
    sources._load_boxes.cache_clear()
    found = data.load(selection("bccd", held=87, size=128))
    parts = found.train, found.validation, found.test
    assert [len(part.labels) for part in parts] == [205, 87, 72]
    assert [int((part.labels[..., 0] > 0).sum()) for part in parts] == [2804, 1137, 945]
    raw = sources.load_raw("bccd", size=128)
    mean, std = dataset._statistics(raw.train_images)
    assert mean == pytest.approx(found.mean, abs=1e-4)
    assert std == pytest.approx(found.std, abs=1e-4)


def test_discs_are_the_same_everywhere():
    raw = sources.load_raw("discs")
    assert raw.checksum == "8b57e5d4d40d88aa" and len(raw.train_labels) == 300
    mean, std = dataset._statistics(raw.train_images)
    known = data.FACTS["discs"]
    assert (mean, std) == (pytest.approx(known.mean, abs=1e-4), pytest.approx(known.std, abs=1e-4))
    label, low, high = raw.train_labels.split([1, 2, 2], -1)
    real = label[..., 0] > 0
    assert real.any(1).all() and set(label[real].flatten().tolist()) == {1, 2}
    assert (high > low).all(-1)[real].all() and low.min() >= 0 and high.max() <= 1


# ---------------------------------------------------------------------- augmentation


def painted() -> tuple[torch.Tensor, torch.Tensor]:
    """Images with one box each, white inside and black outside, and a place that is empty."""
    images, labels = torch.zeros(8, 1, 16, 16, dtype=torch.uint8), torch.zeros(8, 2, 5)
    random = np.random.default_rng(0)
    for image, label in zip(images, labels, strict=True):
        left, top = random.integers(0, 8, 2)
        right, bottom = left + random.integers(1, 8), top + random.integers(1, 8)
        image[:, top:bottom, left:right] = 255
        label[0] = torch.tensor([1, left / 16, top / 16, right / 16, bottom / 16])
    return images, labels


ALL = [Draws(*(torch.full((8,), int(bit)) for bit in f"{n:03b}")) for n in range(8)]


@pytest.mark.parametrize("draws", [each._replace(flip=each.flip.bool()) for each in ALL])
def test_boxes_follow_what_they_surround(draws):
    images, labels = boxes.turn(*painted(), draws)
    for image, (_, left, top, right, bottom) in zip(images[:, 0], labels[:, 0], strict=True):
        inside = torch.zeros_like(image)
        corners = [round(16 * float(corner)) for corner in (top, bottom, left, right)]
        inside[corners[0] : corners[1], corners[2] : corners[3]] = 255
        assert torch.equal(image, inside)
    assert (labels[:, 1, 0] == 0).all()


def test_every_turn_by_itself_undoes_itself():
    images, labels = painted()
    labels[:, 1] = labels[:, 0]
    for bit in range(3):
        on = [torch.full((8,), int(bit == k)) for k in range(3)]
        draws = Draws(on[0], on[1], on[2].bool())
        again, back = boxes.turn(*boxes.turn(images, labels, draws), draws)
        assert torch.equal(again, images)
        torch.testing.assert_close(back, labels)


def test_images_with_an_up_are_mirrored_only():
    generator = torch.Generator().manual_seed(0)
    draws = boxes.draw(200, True, generator)
    assert not draws.dy.any() and not draws.dx.any() and 50 < draws.flip.sum() < 150
    free = boxes.draw(200, False, torch.Generator().manual_seed(0))
    assert torch.equal(free.flip, draws.flip) and free.dy.any() and free.dx.any()
