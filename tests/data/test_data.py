"""Packs, sources and splits; the large sets are tested where they are at hand (shared/data,
Debian's package).
"""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from iekd import data
from iekd.config import RunConfig
from iekd.data import readers, roots, sources, sprites
from iekd.data.sprites import read_pack, write_pack
from iekd.errors import ConfigError, DataError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data")
needs_debian = pytest.mark.skipif(
    not (roots.DEBIAN / "fashion-mnist").exists(), reason="needs Debian's dataset-fashion-mnist"
)


def config(dataset="digits", **fields):
    """Only the fields of the data; building networks is no matter of these tests."""
    return RunConfig.model_construct(dataset=dataset, **fields)


def arrays(train=1203, test=60, channels=3, size=8, classes=10, key="labels"):
    random = np.random.default_rng(0)
    return {
        "train_images": random.integers(0, 256, (train, channels, size, size), np.uint8),
        "test_images": random.integers(0, 256, (test, channels, size, size), np.uint8),
        f"train_{key}": (np.arange(train) % classes).astype(np.uint8),
        f"test_{key}": (np.arange(test) % classes).astype(np.uint8),
    }


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """No data but what the test makes, no network, nothing remembered."""
    monkeypatch.delenv("IEKD_DATA", raising=False)
    monkeypatch.setattr(roots, "default_folder", lambda: tmp_path / "default")
    monkeypatch.setattr(roots, "DEBIAN", tmp_path / "debian")
    monkeypatch.setattr(readers, "torchvision_class", lambda name: no_network)
    sources._load.cache_clear()
    yield tmp_path
    sources._load.cache_clear()


def no_network(folder, download):
    raise OSError("no route to host")


# ---------------------------------------------------------------------- the pack


@pytest.mark.parametrize("channels", [1, 3])
def test_a_pack_gives_back_every_byte(tmp_path, channels):
    given = arrays(channels=channels) | {
        "test_lossless": np.arange(60) != 7,
        "test_names": np.array([b"x.png"] * 60),
    }
    manifest = write_pack(tmp_path / "some", "some", **given)
    found = read_pack(tmp_path / "some")
    assert manifest["mode"] == {1: "L", 3: "RGB"}[channels]
    assert sorted(found) == sorted(given)
    for key, values in given.items():
        np.testing.assert_array_equal(found[key], values)
        assert found[key].dtype == values.dtype
    assert sorted(p.name for p in tmp_path.iterdir()) == ["some"]  # no temporary folder is left


def test_our_sheets_have_the_shared_layout(tmp_path):
    """Image 41 lies in the second row, second column: the recipe of shared/data/README.md, written
    out.
    """
    from PIL import Image

    given = arrays(1000)
    write_pack(tmp_path / "p", "p", **given)
    sheet = np.asarray(Image.open(tmp_path / "p" / "train-00.webp"))
    assert sheet.shape == (25 * 8, 40 * 8, 3)
    np.testing.assert_array_equal(sheet[8:16, 8:16].transpose(2, 0, 1), given["train_images"][41])


def cut_short(folder):
    path = folder / "train-01.webp"
    path.write_bytes(path.read_bytes()[:-100])
    return path


def flip_a_byte(folder):
    path = folder / "test-00.webp"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return path


def remove(name):
    def damage(folder):
        (folder / name).unlink()
        return folder / name

    return damage


def break_manifest(folder):
    (folder / "manifest.json").write_text('{"files": {}')
    return folder / "manifest.json"


def rewrite(folder, name, content):
    """Replace a file and make the manifest agree, so that only the content is wrong."""
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": len(content), "sha256": sprites._sha256(content)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder / name


def drop_a_label(folder):
    with np.load(folder / "labels.npz") as old:
        labels = dict(old)
    np.savez(folder / "labels.npz", **labels | {"train_labels": labels["train_labels"][:-1]})
    return rewrite(folder, "labels.npz", (folder / "labels.npz").read_bytes())


def pickled_labels(folder):
    np.savez(folder / "labels.npz", train_labels=np.array([{}], dtype=object))
    return rewrite(folder, "labels.npz", (folder / "labels.npz").read_bytes())


def no_image(folder):
    return rewrite(folder, "train-00.webp", b"not an image")


def other_pixels(folder):
    rewrite(folder, "train-00.webp", (folder / "train-01.webp").read_bytes())
    return "decoded train pixels"


DAMAGES = [
    cut_short,
    flip_a_byte,
    remove("train-00.webp"),
    remove("manifest.json"),
    remove("labels.npz"),
    break_manifest,
    drop_a_label,
    pickled_labels,
    no_image,
    other_pixels,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused_with_file_and_remedy(alone, damage):
    write_pack(alone / "cifar10", "cifar10", **arrays())
    culprit = damage(alone / "cifar10")
    for read in (lambda: read_pack(alone / "cifar10"), lambda: sources.load_raw("cifar10", alone)):
        with pytest.raises(DataError) as caught:
            read()
        assert str(culprit) in str(caught.value) and "iekd data pack" in str(caught.value)


def test_writing_leaves_nothing_behind_when_it_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(sprites, "_manifest", no_network)
    with pytest.raises(TypeError):
        write_pack(tmp_path / "p", "p", **arrays(10, 10))
    assert list(tmp_path.iterdir()) == []


def test_a_pack_is_not_written_over(tmp_path):
    write_pack(tmp_path / "p", "p", **arrays(20, 10))
    with pytest.raises(DataError, match="exists already"):
        write_pack(tmp_path / "p", "p", **arrays(20, 10))


@pytest.fixture
def lossy(tmp_path, monkeypatch):
    """A pack of JPEG sheets as ../shared/data/imagenette64 is one: 300 and 20 images of one colour
    each.
    """
    from PIL import Image

    folder, files = tmp_path / "imagenette64", {}
    folder.mkdir()
    colours = np.random.default_rng(0).integers(0, 256, (512, 3), np.uint8)
    for name, start in (("train-00", 0), ("train-01", 256), ("val-00", 100)):
        tiles = colours[start : start + 256].reshape(16, 16, 3)
        sheet = tiles.repeat(64, 0).repeat(64, 1)
        Image.fromarray(sheet).save(folder / f"{name}.jpg", quality=92)
    labels = {
        "train_labels": np.arange(300) % 10,
        "val_labels": np.arange(20) % 10,
        "val_names": np.array([b"x"] * 20),
    }
    np.savez(folder / "labels.npz", **labels)
    for path in folder.iterdir():
        files[path.name] = {
            "bytes": path.stat().st_size,
            "sha256": sprites._sha256(path.read_bytes()),
        }
    (folder / "manifest.json").write_text(json.dumps({"train": 300, "val": 20, "files": files}))
    return folder, colours


def test_a_lossy_pack_is_read_and_packed_again(alone, lossy):
    """16 x 16 images a sheet, row by row, the rest of the last sheet left out; its `val` is our
    test set.
    """
    folder, colours = lossy
    raw = sources.load_raw("imagenette", alone)
    assert raw.train_images.shape == (300, 3, 64, 64) and raw.test_images.shape == (20, 3, 64, 64)
    middle = raw.train_images[:, :, 20:44, 20:44].double().mean((2, 3))
    assert (middle - torch.from_numpy(colours[:300])).abs().max() < 3
    assert (
        raw.test_images[:, :, 32, 32].int() - torch.from_numpy(colours[100:120])
    ).abs().max() < 6
    assert raw.test_labels.tolist() == list(range(10)) * 2
    assert (
        sources.find("imagenette", folder).folder == folder
        and sources.find("cifar10", folder) is None
    )
    ours = sources.pack("imagenette", alone / "again", alone)
    assert sources.load_raw("imagenette", ours.parent).checksum == raw.checksum


@pytest.mark.parametrize("method", ["ft", "ie-ft"])
def test_two_epochs_on_a_lossy_pack_with_networks_of_imagenet(alone, lossy, monkeypatch, method):
    """Teacher, factor auto-encoder and student, from the pack to the record."""
    from iekd.training.runner import train

    monkeypatch.setenv("IEKD_DATA", str(alone))
    pair = dict(teacher="resnet18x0.0625_3x3", student="resnet10x0.0625_3x3")
    epochs = dict(epochs=2, teacher_epochs=2, ae_epochs=1, evaluate_every=2)
    few = dict(train_images=64, validation_images=20, batch_size=32)
    record = train(
        RunConfig.create("class", dataset="imagenette", method=method, **pair, **epochs, **few)
    )
    assert (
        record.config.image_size == 0
        and record.data["checksum"] == sources.load_raw("imagenette").checksum
    )
    assert record.metrics["last"].epoch == 2 and set(record.parents) == {"teacher", "autoencoder"}


@pytest.mark.parametrize("name", ["train-01.jpg", "val-00.jpg", "labels.npz", "manifest.json"])
def test_damage_of_a_lossy_pack_is_refused(alone, lossy, name):
    path = lossy[0] / name
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=f"{name}: "):
        sources.load_raw("imagenette", alone)


# ---------------------------------------------------------------------- finding


def test_sources_are_searched_in_order(alone, monkeypatch):
    stick, env, default = alone / "stick", alone / "env", alone / "default"
    for folder in (stick, env, default):
        write_pack(folder / "cifar10", "cifar10", **arrays(20, 10))
    assert sources.find("cifar10", None).folder == default / "cifar10"
    monkeypatch.setenv("IEKD_DATA", str(env))
    assert sources.describe()[2].where == str(env / "cifar10")
    assert sources.describe(stick)[2].where == str(stick / "cifar10")
    assert sources.describe(stick / "cifar10")[2].where == str(stick / "cifar10")  # the root itself
    assert sources.describe(stick / "cifar10")[3].where == ""  # which is no CIFAR-100


def test_a_pack_that_names_itself_may_lie_anywhere(alone):
    write_pack(alone / "usb", "cifar100", **arrays(20, 10, key="fine"))
    assert sources.find("cifar100", alone / "usb").folder == alone / "usb"
    assert sources.find("cifar10", alone / "usb") is None


def test_missing_data_lists_places_and_ways_out(alone, capsys):
    with pytest.raises(DataError) as caught:
        sources.load_raw("fashion-mnist", alone)
    for hint in (
        alone,
        alone / "default",
        alone / "debian",
        "no route",
        "IEKD_DATA",
        "iekd data pack",
        "apt install",
    ):
        assert str(hint) in str(caught.value)
    assert "downloading fashion-mnist" in capsys.readouterr().err
    assert "IEKD_DATA" in sources.describe()[1].remedy


def test_a_named_root_must_exist(alone, monkeypatch):
    with pytest.raises(DataError, match="nowhere: the data root"):
        sources.load_raw("cifar10", alone / "nowhere")
    monkeypatch.setenv("IEKD_DATA", str(alone / "nowhere"))
    with pytest.raises(DataError, match="nowhere: IEKD_DATA"):
        sources.load_raw("cifar10")
    assert "nowhere" in sources.describe()[2].remedy


def test_every_source_has_the_same_checksum(alone, monkeypatch):
    """torchvision's arrays (rows, columns, channels), a download, and packs of them in three
    generations.
    """
    given = arrays(120, 30)

    def official(folder, train=True, download=False):
        split = "train" if train else "test"
        (folder / "cifar-10-batches-py").mkdir(parents=True, exist_ok=True)
        images, labels = given[f"{split}_images"], given[f"{split}_labels"]
        return SimpleNamespace(data=images.transpose(0, 2, 3, 1), targets=labels.tolist())

    monkeypatch.setattr(readers, "torchvision_class", lambda name: official)
    downloaded = sources.load_raw("cifar10")
    assert torch.equal(downloaded.train_images, torch.from_numpy(given["train_images"]))
    first = sources.pack("cifar10", alone / "first")
    second = sources.pack("cifar10", alone / "second", first)
    assert sources.load_raw("cifar10", second).checksum == downloaded.checksum
    with pytest.raises(DataError, match="exists already"):
        sources.pack("cifar10", alone / "first")
    with pytest.raises(ConfigError, match="digits, fashion-mnist"):
        sources.pack("mnist", alone)


def test_a_damaged_torchvision_folder_is_not_unpickled(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(DataError, match="cifar-10-batches-py.*Delete"):
        sources.load_raw("cifar10", tmp_path)


def imagenette_files(root, sizes):
    """torchvision's layout with one image a class and size: lossless, whatever they are called."""
    from PIL import Image

    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in range(10):
            folder = root / readers.IMAGENETTE / split / f"n0{label}"
            folder.mkdir(parents=True)
            for i, (height, width) in enumerate(sizes):
                pixels = random.integers(0, 256, (height, width, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"n0{label}_{i}.JPEG", "PNG")


@pytest.fixture
def official(tmp_path, monkeypatch):
    from torchvision.datasets import Imagenette

    monkeypatch.setattr(
        Imagenette, "_WNID_TO_CLASS", {f"n0{label}": (str(label),) for label in range(10)}
    )
    monkeypatch.setattr(readers, "IMAGENETTE_COUNTS", {"train": 20, "val": 20})
    imagenette_files(tmp_path, [(128, 192), (160, 160)])
    return tmp_path


def test_imagenette_of_torchvision_is_squashed_by_area(official):
    from PIL import Image

    raw = sources.load_raw("imagenette", official)
    assert raw.train_images.shape == raw.test_images.shape == (20, 3, 64, 64)
    assert raw.train_labels.tolist() == [label for label in range(10) for _ in range(2)]
    first = np.asarray(Image.open(official / readers.IMAGENETTE / "train" / "n00" / "n00_0.JPEG"))
    blocks = first.reshape(64, 2, 64, 3, 3).mean((1, 3)).transpose(2, 0, 1)
    assert (
        np.abs(raw.train_images[0].numpy() - blocks).max() <= 1
    )  # Pillow rounds after each direction
    assert sources.find("imagenette", official).folder == official


def test_half_an_imagenette_is_refused(official):
    (official / readers.IMAGENETTE / "val" / "n03" / "n03_1.JPEG").unlink()
    with pytest.raises(DataError, match="imagenette2-160: 19 instead of 20 images in val. Delete"):
        sources.load_raw("imagenette", official)
    shutil.rmtree(official / readers.IMAGENETTE / "train")
    with pytest.raises(DataError, match="imagenette2-160: .*Delete"):
        sources.load_raw("imagenette", official)


def test_a_download_asks_for_the_small_imagenette():
    from torchvision.datasets import Imagenette

    kind = readers.torchvision_class("imagenette")
    assert kind.func is Imagenette and Imagenette._ARCHIVES[kind.keywords["size"]][0].endswith(
        f"/{readers.IMAGENETTE}.tgz"
    )


def test_fashion_files_must_be_fashion(alone):
    folder = alone / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for stem in readers.IDX.values():
        ndim = 3 if "idx3" in stem else 1
        head = bytes([0, 0, 8, ndim]) + np.array([10, 28, 28][:ndim], ">u4").tobytes()
        (folder / stem).write_bytes(head + bytes(10 * 28 ** (ndim - 1)))
    with pytest.raises(DataError, match="not Fashion-MNIST"):
        sources.load_raw("fashion-mnist", alone)
    (folder / stem).write_bytes(head + bytes(9))
    with pytest.raises(DataError, match=f"{stem}: cannot be decoded"):
        sources.load_raw("fashion-mnist", alone)


# ---------------------------------------------------------------------- splits


def test_digits_need_nothing():
    found = data.load(config(train_images=400, validation_images=200))
    assert [len(s.labels) for s in (found.train, found.validation, found.test)] == [400, 200, 597]
    assert found.train.images.shape == (400, 1, 8, 8) and found.train.images.dtype == torch.uint8
    assert found.train.labels.dtype == torch.int64 and found.test.images.max() == 255
    assert (found.num_classes, found.flip, found.pad, found.test.exact) == (10, False, 1, None)
    assert found.train.labels.bincount().tolist() == [40] * 10
    assert found.validation.labels.bincount().tolist() == [20] * 10
    assert set(found.test.labels.bincount().tolist()) == {59, 60}


def test_the_digits_never_change():
    """Records made on one machine must mean the same on another."""
    found = data.load(config(train_images=400, validation_images=200))
    weighted = (found.train.images.long().sum((1, 2, 3)) * torch.arange(1, 401)).sum()
    assert (found.checksum, int(weighted)) == ("2504227a46d2ddf2", 403458248)


def images(split):
    return {bytes(image.numpy().tobytes()) for image in split.images}


def test_parts_do_not_overlap_and_do_not_depend_on_the_seed():
    a, b = (
        data.load(config(seed=seed, train_images=400, validation_images=200)) for seed in (0, 1)
    )
    assert torch.equal(a.train.images, b.train.images) and torch.equal(
        a.validation.images, b.validation.images
    )
    assert not images(a.train) & images(a.validation) and not images(a.train) & images(a.test)
    everything = data.load(config(validation_images=200))
    assert len(everything.train.labels) == 1000 and torch.equal(
        everything.validation.images, a.validation.images
    )
    assert images(a.train) <= images(everything.train)


def test_without_validation_part():
    found = data.load(config(image_size=4))
    assert found.validation.images.shape == (0, 1, 4, 4) and len(found.train.labels) == 1200


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(validation_images=1200), "validation_images: 1200.*0 to 1199"),
        (dict(validation_images=200, train_images=1001), "train_images: 1001.*1 to 1000, or 0"),
        (dict(image_size=9), "image_size: 9.*0 to 8"),
    ],
)
def test_too_much_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        data.load(config(**fields))


def test_area_scaling_averages_blocks():
    full, small = data.load(config()), data.load(config(image_size=4))
    blocks = full.test.images.double().unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5)).round()
    assert torch.equal(small.test.images, blocks.byte())
    assert small.checksum == full.checksum and small.pad == 1


def test_balanced_order_of_unequal_classes():
    labels = torch.tensor([0] * 5 + [1] * 50 + [2] * 50)
    order = readers.balanced_order(labels)
    assert sorted(order.tolist()) == list(range(105))
    assert labels[order[:15]].bincount().tolist() == [5, 5, 5]
    assert torch.equal(order, readers.balanced_order(labels))


# ---------------------------------------------------------------------- the real sets


def check_statistics(found, raw):
    """The constants for normalisation against the training split."""
    levels = torch.arange(256).double() / 255
    for channel, mean, std in zip(raw.train_images.unbind(1), found.mean, found.std, strict=True):
        share = channel.flatten().bincount(minlength=256) / channel.numel()
        expected = (share * levels).sum()
        assert abs(mean - expected) < 2e-4
        assert abs(std - (share * (levels - expected).square()).sum().sqrt()) < 2e-4


def test_digits_statistics():
    check_statistics(data.load(config()), sources.load_raw("digits"))


@needs_debian
def test_fashion_mnist_of_debian(tmp_path):
    found = data.load(config("fashion-mnist", validation_images=5000, image_size=14))
    assert found.train.images.shape == (55000, 1, 14, 14) and found.test.images.shape == (
        10000,
        1,
        14,
        14,
    )
    assert found.validation.labels.bincount().tolist() == [500] * 10
    check_statistics(found, sources.load_raw("fashion-mnist"))


@needs_shared
@pytest.mark.parametrize("name, inexact", [("cifar10", 20), ("cifar100", 0)])
def test_shared_packs(name, inexact):
    found = data.load(config(name, validation_images=5000, train_images=8000), SHARED)
    assert found.train.images.shape == (8000, 3, 32, 32) and found.test.images.shape == (
        10000,
        3,
        32,
        32,
    )
    assert (
        len(set(found.validation.labels.bincount().tolist())) == 1 and found.flip and found.pad == 4
    )
    assert (0 if found.test.exact is None else int((~found.test.exact).sum())) == inexact
    check_statistics(found, sources.load_raw(name, SHARED))
    sources._load.cache_clear()


@needs_shared
def test_shared_imagenette():
    found = data.load(config("imagenette", validation_images=1000), SHARED)
    assert found.train.images.shape == (8469, 3, 64, 64) and found.test.images.shape == (
        3925,
        3,
        64,
        64,
    )
    assert (
        found.validation.labels.bincount().tolist() == [100] * 10 and found.flip and found.pad == 8
    )
    assert found.train.labels.bincount().tolist() == [
        863,
        855,
        893,
        758,
        841,
        856,
        861,
        831,
        851,
        860,
    ]
    check_statistics(found, sources.load_raw("imagenette", SHARED))
    facts = data.FACTS["imagenette"]
    assert (facts.train_images, facts.side) == (
        9469,
        data.image_shape(config("imagenette", image_size=0))[1],
    )
    sources._load.cache_clear()
