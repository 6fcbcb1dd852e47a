"""Where the pixels come from: every data set, whole and undivided, whichever of its sources is at hand.

Sources, in this order: a data root that the user names (argument, else the variable IEKD_DATA); the default folder
(`data/` of a checkout, else ~/.cache/iekd); Debian's folder /usr/share/datasets; last, a download by torchvision into
the default folder. In a root, data set NAME may lie as a sprite pack (iekd.data.sprites) or in torchvision's layout, in
`<root>/NAME` or in `<root>` itself.
`digits` always comes from scikit-learn's wheel.

`imagenette` is Imagenette v2 squashed to 64 x 64 pixels: from torchvision's download of its 160-pixel version
(`imagenette2-160`), averaged over areas, or from a pack that was squashed and stored as JPEG once more
(`imagenette64`). The images are the same and in the same order; their pixels are not, so the checksums differ.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import sys
import zlib
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from iekd.checkout import ROOT
from iekd.config.fields import Dataset
from iekd.data.sprites import pack_name, read_pack, write_pack
from iekd.errors import ConfigError, DataError
from iekd.records import store

NAMES: tuple[str, ...] = get_args(Dataset)
DEBIAN = Path("/usr/share/datasets")
CIFAR = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
LABELS = {"cifar100": "fine"}  # how a pack calls the labels: `train_fine`, else `train_labels`
IDX = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
IMAGENETTE, IMAGENETTE_SIDE = "imagenette2-160", 64
IMAGENETTE_COUNTS = {"train": 9469, "val": 3925}
OTHER_FOLDERS = {
    "imagenette": ("imagenette64",)
}  # what a pack's folder may be called, beside the data set's name
FASHION_CHECKSUM = (
    "ca3ab2a37f845e1b"  # MNIST's files have the same names, and plain IDX files carry no hash
)


class Raw(NamedTuple):
    """A whole data set as its authors divided it."""

    train_images: Tensor  # uint8 (N, C, H, W)
    train_labels: Tensor  # int64 (N,)
    test_images: Tensor  # uint8 (M, C, H, W)
    test_labels: Tensor  # int64 (M,)
    exact: Tensor | None  # bool (M,), False where a test image is known to be a recompressed copy
    checksum: str  # 16 hexadecimal digits: SHA-256 of the pixels and labels, whatever the source


class Found(NamedTuple):
    """A source that is there: the folder, and the function that reads a data set from it."""

    folder: Path
    read: Callable[[str, Path], Raw]


class Row(NamedTuple):
    """A line of `iekd data list`: where a data set is, or else what to do about it."""

    name: str
    where: str
    remedy: str


# ---------------------------------------------------------------------- for users


def load_raw(name: str, root: Path | None = None) -> Raw:
    """The whole data set, from the first source that has it; a second call in the same process costs nothing.

    The tensors are shared between callers: do not write to them. Raises `DataError` if no source has it, or if the
    first that has it is damaged.
    """
    return _digits() if name == "digits" else _load(name, _named_root(root))


def pack(name: str, dest: Path, root: Path | None = None) -> Path:
    """Write data set `name` as a sprite pack into `dest/name`, so that `dest` is a data root; return that folder.

    Raises `ConfigError` for an unknown name, `DataError` if the data cannot be read or the pack cannot be written.
    """
    if name not in NAMES:
        raise ConfigError(f"data set {name!r} is not known; choose one of {', '.join(NAMES)}")
    raw, key, folder = load_raw(name, root), LABELS.get(name, "labels"), Path(dest) / name
    arrays = {
        "train_images": raw.train_images.numpy(),
        "test_images": raw.test_images.numpy(),
        f"train_{key}": raw.train_labels.numpy().astype(np.uint8),
        f"test_{key}": raw.test_labels.numpy().astype(np.uint8),
    }
    if raw.exact is not None:
        arrays["test_lossless"] = raw.exact.numpy()
    try:
        write_pack(folder, name, **arrays)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be written ({error.strerror}). Name another folder."
        ) from None
    return folder


def describe(root: Path | None = None) -> list[Row]:
    """One row a data set: where it is, or what to do. Looks at names only, decodes and downloads nothing."""
    return [_describe(name, root) for name in NAMES]


def _describe(name: str, root: Path | None) -> Row:
    if name == "digits":
        return Row(name, "in scikit-learn", "")
    try:
        found = find(name, _named_root(root))
    except DataError as error:
        return Row(name, "", str(error))
    return Row(name, str(found.folder), "") if found else Row(name, "", _ways_out(name))


# ---------------------------------------------------------------------- finding


def default_folder() -> Path:
    """`data/` beside pyproject.toml in a checkout, ~/.cache/iekd for an installed package."""
    repository = ROOT
    return (
        repository / "data"
        if (repository / "pyproject.toml").exists()
        else Path.home() / ".cache" / "iekd"
    )


def find(name: str, root: Path | None) -> Found | None:
    """The first place that has the data set, or None."""
    for folder in _roots(root):
        for place in (*(folder / called for called in _folder_names(name)), folder):
            if found := _look_into(place, name):
                return found
    return None


def _named_root(root: Path | None) -> Path | None:
    """The data root that the user names, absolute; `DataError` if it is not there."""
    named = root or os.environ.get("IEKD_DATA")
    if not named:
        return None
    folder = Path(named).expanduser().resolve()
    if not folder.is_dir():
        origin = "the data root" if root else "IEKD_DATA"
        raise DataError(
            f"{folder}: {origin} is not a folder. Name the folder that holds the data, or none."
        )
    return folder


def _roots(root: Path | None) -> list[Path]:
    return [*([root] if root else []), default_folder(), DEBIAN]


def _folder_names(name: str) -> tuple[str, ...]:
    return name, *OTHER_FOLDERS.get(name, ())


def _look_into(folder: Path, name: str) -> Found | None:
    # A damaged pack counts as found: the reader then says what is wrong with it, instead of a download nobody expects.
    traces = any(
        (folder / file).exists()
        for file in ("manifest.json", "labels.npz", "train-00.webp", "train-00.jpg")
    )
    if traces and (folder.name in _folder_names(name) or pack_name(folder) == name):
        return Found(folder, _read_pack)
    if name in CIFAR and (folder / CIFAR[name]).is_dir():
        return Found(folder, _read_cifar)
    if name == "imagenette" and (folder / IMAGENETTE).is_dir():
        return Found(folder, _read_imagenette)
    if name == "fashion-mnist":
        for place in (folder, folder / "FashionMNIST" / "raw"):
            if all(_idx_file(place, stem).exists() for stem in IDX.values()):
                return Found(place, _read_fashion)
    return None


@lru_cache(maxsize=4)
def _load(name: str, root: Path | None) -> Raw:
    found = find(name, root) or _download(name, root)
    return found.read(name, found.folder)


def _download(name: str, root: Path | None) -> Found:
    folder = default_folder()
    print(f"iekd: downloading {name} with torchvision into {folder}", file=sys.stderr, flush=True)
    try:
        with store.locked(
            folder / ".download.lock"
        ):  # runs started side by side: one downloads, the others wait
            _torchvision(name)(folder, download=True)
    except Exception as error:  # whatever fails in a download, the ways out are the same
        searched = ", ".join(map(str, _roots(root)))
        raise DataError(
            f"{name}: not in {searched}; the download failed ({error}). {_ways_out(name)}"
        ) from error
    found = find(name, None)
    assert found, f"torchvision left nothing in {folder}"
    return found


def _ways_out(name: str) -> str:
    debian = "`apt install dataset-fashion-mnist` on Debian; or " if name == "fashion-mnist" else ""
    return (
        f"Name a folder that holds {name} (--root or IEKD_DATA); or, on a machine that has it, "
        f"`iekd data pack {name} DEST` and carry DEST here; or {debian}connect to the network: it is then downloaded; "
        "or use the data set digits, which needs none of this."
    )


def _torchvision(name: str) -> Any:
    from torchvision import datasets  # here, because it costs a second that a pack does not need

    kinds = {
        "cifar10": datasets.CIFAR10,
        "cifar100": datasets.CIFAR100,
        "fashion-mnist": datasets.FashionMNIST,
    }
    return kinds[name] if name in kinds else partial(datasets.Imagenette, size="160px")


# ---------------------------------------------------------------------- reading


def balanced_order(labels: Tensor) -> Tensor:
    """A fixed order of the images, int64 (N,), in which every beginning has the classes equally often, to within one.

    It depends on the labels alone. (In an unbalanced set, small classes are missing from the end.)
    """
    values = labels.numpy()
    shuffled = np.random.RandomState(0).permutation(
        len(values)
    )  # the one generator of NumPy whose stream is frozen
    rank = np.empty(len(values), np.int64)  # how many images of its class come earlier
    for label in np.unique(values):
        members = shuffled[values[shuffled] == label]
        rank[members] = np.arange(len(members))
    return torch.from_numpy(shuffled[np.argsort(rank[shuffled], kind="stable")])


def _raw(
    train_images: Any, train_labels: Any, test_images: Any, test_labels: Any, exact: Any = None
) -> Raw:
    """Arrays to tensors, with the checksum."""
    arrays = [
        np.ascontiguousarray(a, np.uint8)
        for a in (train_images, train_labels, test_images, test_labels)
    ]
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(array)
    a, b, c, d = (torch.from_numpy(array) for array in arrays)
    mask = None if exact is None else torch.from_numpy(exact)
    return Raw(a, b.long(), c, d.long(), mask, digest.hexdigest()[:16])


@lru_cache(maxsize=1)
def _digits() -> Raw:
    """The 1,797 digits of scikit-learn, levels 0..16 scaled to 0..255. The split, 1,200 and 597, is ours."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images[:, None] * (255 / 16)).astype(np.uint8)
    order = balanced_order(torch.from_numpy(digits.target)).numpy()
    test, train = np.sort(order[:597]), np.sort(order[597:])
    return _raw(images[train], digits.target[train], images[test], digits.target[test])


def _read_pack(name: str, folder: Path) -> Raw:
    arrays, key = read_pack(folder), LABELS.get(name, "labels")
    wanted = ("train_images", f"train_{key}", "test_images", f"test_{key}")
    if missing := [k for k in wanted if k not in arrays]:
        raise DataError(
            f"{folder / 'labels.npz'}: has no {' and no '.join(missing)}; is this pack {name}?"
        )
    exact = arrays.get("test_lossless")
    return _raw(*(arrays[k] for k in wanted), exact=None if exact is None or exact.all() else exact)


def _read_cifar(name: str, folder: Path) -> Raw:
    """torchvision's own loader: it unpickles the official batches, after checking their MD5 sums."""
    kind = _torchvision(name)
    try:
        train, test = kind(folder, train=True), kind(folder, train=False)
    except RuntimeError as error:
        path = folder / CIFAR[name]
        raise DataError(
            f"{path}: {error}. Delete the folder; it is then looked for elsewhere or downloaded."
        ) from None
    return _raw(
        train.data.transpose(0, 3, 1, 2),
        train.targets,
        test.data.transpose(0, 3, 1, 2),
        test.targets,
    )


def _read_imagenette(name: str, folder: Path) -> Raw:
    """torchvision's files, decoded and squashed: 7 s of a core. A pack of them (`iekd data pack`) takes half of it."""
    kind, path, parts = _torchvision(name), folder / IMAGENETTE, []
    try:
        for split, count in IMAGENETTE_COUNTS.items():
            files = kind(folder, split=split, transform=_squash)
            if len(files) != count:
                raise OSError(f"{len(files)} instead of {count} images in {split}")
            images, labels = zip(*files, strict=True)
            parts += [np.stack(images).transpose(0, 3, 1, 2), labels]
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{path}: {error}. Delete the folder; it is then looked for elsewhere or downloaded."
        ) from None
    return _raw(*parts)


def _squash(image: Image.Image) -> np.ndarray:
    """uint8 (64, 64, 3), each pixel the mean of its area, whatever the shape of the image."""
    return np.asarray(image.resize((IMAGENETTE_SIDE, IMAGENETTE_SIDE), Image.Resampling.BOX))


def _read_fashion(name: str, folder: Path) -> Raw:
    arrays = {key: _read_idx(_idx_file(folder, stem)) for key, stem in IDX.items()}
    raw = _raw(**{key: a[:, None] if a.ndim == 3 else a for key, a in arrays.items()})
    if raw.checksum != FASHION_CHECKSUM:
        raise DataError(
            f"{folder}: not Fashion-MNIST, or damaged (checksum {raw.checksum}). Delete or replace it."
        )
    return raw


def _idx_file(folder: Path, stem: str) -> Path:
    """The file, compressed (as Debian ships it) or plain (as torchvision leaves it)."""
    packed = folder / f"{stem}.gz"
    return packed if packed.exists() else folder / stem


def _read_idx(path: Path) -> np.ndarray:
    """An IDX file of bytes: 0 0 8 ndim, big-endian sizes, values."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            content = file.read()
        ndim = content[3]
        shape = np.frombuffer(content, ">u4", ndim, offset=4).astype(int)
        return (
            np.frombuffer(content, np.uint8, offset=4 + 4 * ndim).reshape(shape).copy()
        )  # writable, for torch
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise DataError(f"{path}: cannot be decoded ({error}). Delete or replace it.") from None
