"""Readers, one for each form that a data set has on disk: pixels and labels, undivided.

`imagenette` is Imagenette v2 squashed to 64 x 64 pixels: from torchvision's download of its
160-pixel version (`imagenette2-160`), averaged over areas, or from a pack that was squashed and
stored as JPEG again (`imagenette64`). The images are the same and in the same order; their
pixels are not, so the checksums differ.
"""

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from iekd.data.sprites import read_pack
from iekd.errors import DataError

CIFAR = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
# What a pack calls the labels: `train_fine`, else `train_labels`.
LABELS = {"cifar100": "fine"}
IDX = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
IMAGENETTE, IMAGENETTE_SIDE = "imagenette2-160", 64
IMAGENETTE_COUNTS = {"train": 9469, "val": 3925}
# MNIST's files have the same names, and plain IDX files carry no hash.
FASHION_CHECKSUM = "ca3ab2a37f845e1b"


class Raw(NamedTuple):
    """A whole data set as its authors divided it."""

    train_images: Tensor  # uint8 (N, C, H, W)
    train_labels: Tensor  # int64 (N,)
    test_images: Tensor  # uint8 (M, C, H, W)
    test_labels: Tensor  # int64 (M,)
    # bool (M,), False where a test image is known to be a recompressed copy.
    exact: Tensor | None
    # 16 hexadecimal digits: SHA-256 of the pixels and labels, whatever the source.
    checksum: str


def raw(
    train_images: Any, train_labels: Any, test_images: Any, test_labels: Any, exact: Any = None
) -> Raw:
    """Arrays to tensors, with the checksum."""
    given = (train_images, train_labels, test_images, test_labels)
    arrays = [np.ascontiguousarray(array, np.uint8) for array in given]
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(array.data)
    a, b, c, d = (torch.from_numpy(array) for array in arrays)
    mask = None if exact is None else torch.from_numpy(exact)
    return Raw(a, b.long(), c, d.long(), mask, digest.hexdigest()[:16])


def balanced_order(labels: Tensor) -> Tensor:
    """A fixed order of the images, int64 (N,), that depends only on the labels.

    Every prefix contains the classes equally often, to within one image. (In an unbalanced set,
    small classes are missing from the end.)
    """
    values = labels.numpy()
    # RandomState: NumPy's only generator whose stream is frozen.
    shuffled = np.random.RandomState(0).permutation(len(values))

    # The rank of an image: how many of its class come earlier.
    rank = np.empty(len(values), np.int64)
    for label in np.unique(values):
        members = shuffled[values[shuffled] == label]
        rank[members] = np.arange(len(members))
    return torch.from_numpy(shuffled[np.argsort(rank[shuffled], kind="stable")])


@lru_cache(maxsize=1)
def digits() -> Raw:
    """The 1,797 digits of scikit-learn, levels 0..16 scaled to 0..255. The split is ours."""
    # Read the file directly: importing scikit-learn takes longer than the first epochs of a run.
    file = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    table = np.loadtxt(str(file), np.int64, delimiter=",")
    images = np.rint(table[:, :-1].reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    labels = table[:, -1]
    order = balanced_order(torch.from_numpy(labels)).numpy()
    test, train = np.sort(order[:597]), np.sort(order[597:])
    return raw(images[train], labels[train], images[test], labels[test])


def pack(name: str, folder: Path) -> Raw:
    """A sprite pack (iekd.data.sprites)."""
    arrays, key = read_pack(folder), LABELS.get(name, "labels")
    wanted = ("train_images", f"train_{key}", "test_images", f"test_{key}")
    if missing := [k for k in wanted if k not in arrays]:
        names = " and no ".join(missing)
        raise DataError(f"{folder / 'labels.npz'}: has no {names}; is this pack {name}?")
    exact = arrays.get("test_lossless")
    mask = None if exact is None or exact.all() else exact
    train, train_labels, test, test_labels = (arrays[k] for k in wanted)
    return raw(train, train_labels, test, test_labels, mask)


def cifar(name: str, folder: Path) -> Raw:
    """torchvision's own loader: it unpickles the official batches once their MD5 sums match."""
    kind = torchvision_class(name)
    with _deletable(folder / CIFAR[name]):
        train, test = kind(folder, train=True), kind(folder, train=False)
    images = [each.data.transpose(0, 3, 1, 2) for each in (train, test)]
    return raw(images[0], train.targets, images[1], test.targets)


def imagenette(name: str, folder: Path) -> Raw:
    """torchvision's files, decoded and squashed: 7 s on one core, twice as long as a pack."""
    kind, parts = torchvision_class(name), []
    with _deletable(folder / IMAGENETTE):
        for split, count in IMAGENETTE_COUNTS.items():
            files = kind(folder, split=split, transform=squash)
            if len(files) != count:
                raise OSError(f"{len(files)} instead of {count} images in {split}")
            images, labels = zip(*files, strict=True)
            parts += [np.stack(images).transpose(0, 3, 1, 2), labels]
    return raw(*parts)


def fashion(name: str, folder: Path) -> Raw:
    """The four IDX files."""
    arrays = {key: _read_idx(idx_file(folder, stem)) for key, stem in IDX.items()}
    for key in ("train_images", "test_images"):
        arrays[key] = arrays[key][:, None]
    found = raw(**arrays)
    if found.checksum != FASHION_CHECKSUM:
        raise DataError(
            f"{folder}: not Fashion-MNIST, or damaged (checksum {found.checksum}). "
            "Delete or replace it."
        )
    return found


def torchvision_class(name: str) -> Any:
    """torchvision's class for a data set, imported here to save a second with packs."""
    from torchvision import datasets

    kinds = {
        "cifar10": datasets.CIFAR10,
        "cifar100": datasets.CIFAR100,
        "fashion-mnist": datasets.FashionMNIST,
        "imagenette": partial(datasets.Imagenette, size="160px"),
    }
    return kinds[name]


def idx_file(folder: Path, stem: str) -> Path:
    """The file, compressed (as Debian ships it) or plain (as torchvision leaves it)."""
    packed = folder / f"{stem}.gz"
    return packed if packed.exists() else folder / stem


def _read_idx(path: Path) -> np.ndarray:
    """An IDX file of bytes: 0 0 8 ndim, big-endian sizes, values."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read()
        ndim = content[3]
        shape = np.frombuffer(content, ">u4", ndim, offset=4).astype(int)
        values = np.frombuffer(content, np.uint8, offset=4 + 4 * ndim)
        # A copy: torch requires a writable array.
        return values.reshape(shape).copy()
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise DataError(f"{path}: cannot be decoded ({error}). Delete or replace it.") from None


def squash(image: Image.Image) -> np.ndarray:
    """uint8 (64, 64, 3), each pixel the mean of its area, whatever the shape of the image."""
    return np.asarray(image.resize((IMAGENETTE_SIDE, IMAGENETTE_SIDE), Image.Resampling.BOX))


@contextmanager
def _deletable(folder: Path) -> Iterator[None]:
    """If a folder cannot be read, say how to get another."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{folder}: {error}. Delete the folder; it is then looked for elsewhere or downloaded."
        ) from None
