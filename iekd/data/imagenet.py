"""ImageNet (ILSVRC 2012) as torchvision lays it out: train/WNID/*.JPEG and val/WNID/*.JPEG.

`imagenet` reads these files while it trains (iekd.data.stream). `imagenet64` holds the same images,
squashed to 64 x 64 pixels once by `iekd data pack imagenet64 DEST`: four NumPy files, which are
memory-mapped instead of loaded, and a checksum of all their values.
"""

import hashlib
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from iekd.data import stream
from iekd.data.facts import FACTS
from iekd.data.readers import Raw, squash
from iekd.errors import DataError

SPLITS = ("train", "val")
TEST_IMAGES = 50_000  # their validation images are our test images
WNID, SUFFIXES = re.compile(r"n\d{8}"), (".jpeg", ".jpg")
# Files of the squashed images; the checksum is written last.
PARTS = ("train_images", "train_labels", "test_images", "test_labels")
CHECKSUM = "imagenet64.sha256"
BATCH = 500


def is_layout(folder: Path) -> bool:
    """Whether a folder has a subfolder for every class in both parts."""
    counts = {len(_classes(folder / split)) for split in SPLITS}
    return counts == {FACTS["imagenet"].num_classes}


def read(name: str, folder: Path) -> Raw:
    """The files at 224 pixels. The checksum covers names and sizes: nothing is decoded.

    Raises `DataError` for more or fewer images than ImageNet has.
    """
    digest, side, found = hashlib.sha256(), FACTS["imagenet"].side, []
    for split, count in zip(SPLITS, (FACTS["imagenet"].train_images, TEST_IMAGES), strict=True):
        names, labels = [], []
        for label, entry in _entries(folder / split):
            names.append(os.fsencode(os.path.relpath(entry.path, folder)))
            labels.append(label)
            digest.update(names[-1] + b" %d\0" % entry.stat().st_size)
        if len(names) != count:
            raise DataError(
                f"{folder / split}: {len(names)} instead of {count} images. Unpack the archive of "
                "ImageNet again; a selection of classes can be a data set of your own (my-NAME)."
            )
        files = stream.Files(folder, np.array(names), side)
        found += [stream.Stream(files), torch.tensor(labels)]
    train, train_labels, test, test_labels = found
    return Raw(train, train_labels, test, test_labels, None, digest.hexdigest()[:16])


def read_squashed(name: str, folder: Path) -> Raw:
    """The packed images, memory-mapped. Raises `DataError` if a value is not as written."""
    try:
        expected = (folder / CHECKSUM).read_text().strip()
        arrays = [np.load(folder / f"{part}.npy", mmap_mode="c") for part in PARTS]
        digest = hashlib.sha256()
        for array in arrays:
            digest.update(array.data)
        if digest.hexdigest() != expected:
            raise ValueError("its SHA-256 is not that of its images")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder}: cannot be used ({error}). Copy it again, or recreate it with `iekd data "
            "pack imagenet64`."
        ) from None
    images, labels, test_images, test_labels = map(torch.from_numpy, arrays)
    return Raw(images, labels, test_images, test_labels, None, expected[:16])


def pack(source: Raw, folder: Path) -> None:
    """Squash all images of a `read` into a folder, which appears completely or not at all."""
    if folder.exists():
        raise DataError(f"{folder}: exists already. Remove it, or name another folder.")
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    digest = hashlib.sha256()
    try:
        unfinished.mkdir(parents=True)
        for part in PARTS:
            _write(unfinished / f"{part}.npy", getattr(source, part), digest)
        (unfinished / CHECKSUM).write_text(digest.hexdigest() + "\n")
        os.replace(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write(path: Path, values: Any, digest: Any) -> None:
    """Labels, or the images of a stream, as a NumPy file: at most one batch in memory."""
    blocks: Iterable[Tensor] = [values]
    kind, shape = "<i8", tuple(values.shape)
    if isinstance(values, stream.Stream):
        side = FACTS["imagenet64"].side
        kind, shape = "|u1", (len(values), 3, side, side)
        blocks = _squashed(values, side)
    header = {"descr": kind, "fortran_order": False, "shape": shape}
    total = math.ceil(len(values) / BATCH)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for block in tqdm(blocks, path.stem, total, unit="batch", disable=kind != "|u1"):
            digest.update(block.numpy().data)
            file.write(block.numpy().data)


def _squashed(images: stream.Stream, side: int) -> Iterator[Tensor]:
    """All images in batches, uint8 (B, 3, side, side)."""
    files = images.files
    batches = torch.arange(len(images)).split(BATCH)
    numbers = (batch.tolist() for batch in batches)
    return stream.read_ahead(Squashed(files.folder, files.names, side), numbers, images.workers)


class Squashed(stream.Files):
    """An image by its index, uint8 (3, side, side), each pixel the mean of its area."""

    def __getitem__(self, index: Any) -> Tensor:
        path = self.path(index)
        try:
            with Image.open(path) as image:
                pixels = squash(image.convert("RGB")).transpose(2, 0, 1)
            return torch.from_numpy(np.ascontiguousarray(pixels))
        except (OSError, ValueError, SyntaxError) as error:
            raise stream.unreadable(path, error) from None


def _classes(folder: Path) -> list[str]:
    """The class folders in the order of their indices; empty if there is no such folder."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path.name for path in found if WNID.fullmatch(path.name))


def _entries(folder: Path) -> Iterator[tuple[int, os.DirEntry]]:
    """Class and file of every image."""
    for label, name in enumerate(_classes(folder)):
        for entry in sorted(os.scandir(folder / name), key=lambda entry: entry.name):
            if entry.name.lower().endswith(SUFFIXES) and entry.name[0] != ".":
                yield label, entry
