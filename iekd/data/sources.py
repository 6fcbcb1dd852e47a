"""Where the pixels come from: every data set from whichever of its sources is available.

In a data root (iekd.data.roots), data set NAME may be a sprite pack or in torchvision's layout,
in `<root>/NAME` or in `<root>` itself. If no root has it, torchvision downloads it into the default
folder. `digits` always comes from scikit-learn's wheel, `discs` is drawn; `my-...` are your own
images, and `bccd` and `voc` have boxes (iekd.data.boxes): none of these is downloaded.
"""

import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock

from iekd.data import boxes, own, readers, roots
from iekd.data.facts import FACTS, NAMES, STREAMED, has_boxes
from iekd.data.readers import Raw
from iekd.data.sprites import TRACES, pack_name, write_pack
from iekd.errors import ConfigError, DataError

# What the folder of a data set may be called, besides its name.
OTHER_FOLDERS = {"imagenette": "imagenette64"}
# From ImageNet's own files, which are not downloaded; torchvision crops them, and its import takes
# seconds.
IMAGENET = ("imagenet64", "imagenet")

# Data sets that need no files.
MADE = {"digits": "in scikit-learn", "discs": "drawn by iekd"}


class Found(NamedTuple):
    """An available source: the folder, and the function that reads a data set from it."""

    folder: Path
    read: Callable[..., Raw]


class Row(NamedTuple):
    """A line of `iekd data list`: where a data set is, or else what to do about it."""

    name: str
    where: str
    remedy: str


def load_raw(name: str, root: Path | None = None, size: int = 0) -> Raw:
    """The whole data set, from the first source that has it; cached in this process.

    The tensors are shared between callers: do not write to them. `size` is for images of different
    sizes, which are scaled when they are read. Raises `DataError` if no source has it, or if the
    first one that has it is damaged.
    """
    if name == "digits":
        return readers.digits()
    if own.is_own(name):
        return _load_own(own.find(name, root), size)
    if name == "discs":
        return _load_discs()
    if has_boxes(name):
        return _load_boxes(name, roots.named_root(root), size)
    return _load(name, roots.named_root(root))


def pack(name: str, dest: Path, root: Path | None = None) -> Path:
    """Write data set `name` as a sprite pack into `dest/name`, so that `dest` is a data root.

    Returns that folder. Raises `ConfigError` for an unknown name, `DataError` if the data cannot
    be read or the pack cannot be written.
    """
    if name not in NAMES:
        raise ConfigError(f"data set {name!r} is not known; choose one of {', '.join(NAMES)}")
    if has_boxes(name):
        raise ConfigError(f"{name}: a pack has no boxes; carry the folder of its files instead")
    if name in STREAMED:
        raise ConfigError(f"{name} is used as its own files are; what can be packed is imagenet64")
    raw, folder = load_raw("imagenet" if name in IMAGENET else name, root), Path(dest) / name
    try:
        _write(name, raw, folder)
    except OSError as error:
        reason = error.strerror
        raise DataError(f"{folder}: cannot be written ({reason}). Name another folder.") from None
    return folder


def _write(name: str, raw: Raw, folder: Path) -> None:
    """Write a pack: sprites, except for ImageNet."""
    if name in IMAGENET:
        from iekd.data import imagenet

        return imagenet.pack(raw, folder)
    key = readers.LABELS.get(name, "labels")
    arrays: dict[str, Any] = {
        "train_images": raw.train_images.numpy(),
        "test_images": raw.test_images.numpy(),
        f"train_{key}": raw.train_labels.numpy().astype(np.uint8),
        f"test_{key}": raw.test_labels.numpy().astype(np.uint8),
    }
    if raw.exact is not None:
        arrays["test_lossless"] = raw.exact.numpy()
    write_pack(folder, name, **arrays)


def describe(root: Path | None = None) -> list[Row]:
    """One row per data set: where it is, or what to do. Decodes and downloads nothing."""
    try:
        named, mine = roots.named_root(root), own.folders(root)
    except DataError as error:
        return [Row(name, MADE.get(name, ""), "" if name in MADE else str(error)) for name in NAMES]
    rows = []
    for name in NAMES:
        found = None if name in MADE else find(name, named)
        where = str(found.folder) if found else MADE.get(name, "")
        rows.append(Row(name, where, "" if where else _ways_out(name)))
    return rows + [Row(folder.name, str(folder), "") for folder in mine]


def find(name: str, root: Path | None) -> Found | None:
    """The first place that has the data set, or None. `root`: absolute."""
    names = [name, OTHER_FOLDERS.get(name, name)]
    for folder in roots.roots(root):
        for place in (*(folder / called for called in names), folder):
            if found := _look_into(place, name, names):
                return found
    return None


def _look_into(folder: Path, name: str, names: list[str]) -> Found | None:
    # A damaged pack counts as found: its reader says what is wrong, instead of an unexpected
    # download.
    is_pack = any((folder / file).exists() for file in TRACES)
    if is_pack and (folder.name in names or pack_name(folder) == name):
        return Found(folder, readers.pack)

    if has_boxes(name):
        return Found(folder, boxes.read) if boxes.has_files(name, folder) else None

    # ImageNet, squashed or original.
    if name in IMAGENET:
        from iekd.data import imagenet

        if name == "imagenet64" and (folder / imagenet.CHECKSUM).is_file():
            return Found(folder, imagenet.read_squashed)
        if name == "imagenet" and imagenet.is_layout(folder):
            return Found(folder, imagenet.read)

    # torchvision's layouts.
    if name in readers.CIFAR and (folder / readers.CIFAR[name]).is_dir():
        return Found(folder, readers.cifar)
    if name == "imagenette" and (folder / readers.IMAGENETTE).is_dir():
        return Found(folder, readers.imagenette)
    if name == "fashion-mnist":
        for place in (folder, folder / "FashionMNIST" / "raw"):
            if all(readers.idx_file(place, stem).exists() for stem in readers.IDX.values()):
                return Found(place, readers.fashion)
    return None


@lru_cache(maxsize=4)
def _load(name: str, root: Path | None) -> Raw:
    found = find(name, root) or _download(name, root)
    return found.read(name, found.folder)


@lru_cache(maxsize=1)
def _load_discs() -> Raw:
    return boxes.discs()


@lru_cache(maxsize=2)
def _load_boxes(name: str, root: Path | None, side: int) -> Raw:
    if not (found := find(name, root)):
        raise _missing(name, root)
    if side == 0:
        raise ConfigError(own.no_size(name))
    return found.read(name, found.folder, side)


@lru_cache(maxsize=4)
def _load_own(folder: Path, size: int) -> Raw:
    found = own.read(folder, size)
    images = [torch.from_numpy(found[f"{split}_images"]) for split in ("train", "test")]
    train, test = (each.permute(0, 3, 1, 2).contiguous() for each in images)
    labels = [torch.from_numpy(found[f"{split}_labels"]) for split in ("train", "test")]
    return Raw(train, labels[0], test, labels[1], None, found["checksum"])


def _download(name: str, root: Path | None) -> Found:
    if name in IMAGENET:
        raise _missing(name, root)
    folder = roots.default_folder()
    print(f"iekd: downloading {name} with torchvision into {folder}", file=sys.stderr, flush=True)
    try:
        # Of runs started in parallel, one downloads and the others wait.
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".download.lock"):
            readers.torchvision_class(name)(folder, download=True)
    except Exception as error:
        # Whatever fails during a download, the ways out are the same.
        raise _missing(name, root, f"; the download failed ({error})") from error
    found = find(name, None)
    assert found, f"torchvision left nothing in {folder}"
    return found


def _missing(name: str, root: Path | None, tried: str = "") -> DataError:
    searched = ", ".join(map(str, roots.roots(root)))
    return DataError(f"{name}: not in {searched}{tried}. {_ways_out(name)}")


def _ways_out(name: str) -> str:
    if has_boxes(name):
        return boxes.ways_out(name)
    if name == "imagenet":
        return (
            "Name the folder that holds train/ and val/ of ImageNet (--root or IEKD_DATA), each "
            f"with {FACTS[name].num_classes:,} folders n01440764, ..., as "
            "torchvision.datasets.ImageNet unpacks them."
        )
    if name == "imagenet64":
        return (
            "Where ImageNet is (--root or IEKD_DATA), `iekd data pack imagenet64 DEST`; then name "
            "DEST (IEKD_DATA)."
        )
    debian = "`apt install dataset-fashion-mnist` on Debian; or " if name == "fashion-mnist" else ""
    return (
        f"Name a folder that holds {name} (--root or IEKD_DATA); or, on a machine that has it, "
        f"`iekd data pack {name} DEST` and carry DEST here; or {debian}connect to the network: it "
        "is then downloaded; or use the data set digits, which needs none of this."
    )
