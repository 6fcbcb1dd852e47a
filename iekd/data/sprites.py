"""The sprite pack: an image data set as lossless WebP sheets, small enough to carry on a stick.

A pack is a folder with `train-00.webp`, `test-00.webp`, ... (1000 images each in their original order, 40 columns x 25
rows, row-major; the last sheet of a split is filled up with black), `labels.npz` (arrays named `train_*` and `test_*`,
one entry an image) and `manifest.json` (size and SHA-256 of every file, SHA-256 of the decoded pixels of each split).
CIFAR-10 takes 102 MB, its official archive 170. Every byte read is checked: sticks do corrupt files.

A lossy pack is read as well, and never written: JPEG sheets of 256 images (16 x 16), the second split called `val`, and
no hash of the pixels, because decoders of JPEG differ in rounding.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from iekd.errors import DataError

COLUMNS, ROWS = 40, 25
SHEET = COLUMNS * ROWS
LOSSY_GRID = 16, 16  # columns, rows
SPLITS = ("train", "test")
AGAIN = "Copy the folder again from where it came from, or make it anew with `iekd data pack`."


def read_pack(folder: Path) -> dict[str, np.ndarray]:
    """Decode a pack: `train_images`, `test_images`, uint8 (N, C, H, W), and every array of `labels.npz` under its name.

    Raises `DataError` for a file that is missing, cut short or changed, and for labels or pixels that do not fit.
    """
    manifest = _read_manifest(folder)
    labels = _read_labels(folder, manifest)
    images = {f"{split}_images": _read_split(folder, manifest, split) for split in SPLITS}
    for key, values in labels.items():
        expected = len(images[f"{key.split('_')[0]}_images"])
        if len(values) != expected:
            raise DataError(
                f"{folder / 'labels.npz'}: {len(values)} entries in {key} for {expected} images. {AGAIN}"
            )
    return images | labels


def write_pack(
    folder: Path, name: str, train_images: np.ndarray, test_images: np.ndarray, **labels: np.ndarray
) -> dict[str, Any]:
    """Write images, uint8 (N, C, H, W) with C = 1 or 3, and arrays named `train_*` or `test_*`; return the manifest.

    The folder appears whole or not at all. Raises `DataError` if it exists, `ValueError` for arrays that make no pack.
    """
    if folder.exists():
        raise DataError(f"{folder}: exists already. Remove it, or name another folder.")
    images = {"train": train_images, "test": test_images}
    _check_arrays(images, labels)
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        np.savez_compressed(part / "labels.npz", **labels)
        for split, pixels in images.items():
            _write_split(part, split, pixels)
        manifest = _manifest(part, name, images)
        (part / "manifest.json").write_text(json.dumps(manifest, indent=1))
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return manifest


def pack_name(folder: Path) -> str | None:
    """The data set that a pack says it holds; None where there is no pack, or one that does not say."""
    try:
        return json.loads((folder / "manifest.json").read_bytes()).get("name")
    except (OSError, ValueError, AttributeError):
        return None


# ---------------------------------------------------------------------- reading


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_bytes())
        _ = manifest["files"]["labels.npz"]
        _ = [manifest[f"{split}_pixels_sha256"] for split in SPLITS if not _is_lossy(manifest)]
        _ = [(known["bytes"], known["sha256"]) for known in manifest["files"].values()]
    except FileNotFoundError:
        raise DataError(
            f"{path}: missing, so nothing in this folder can be checked. {AGAIN}"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: cannot be used as the manifest of a sprite pack ({error!r}). {AGAIN}"
        ) from None
    return manifest


def _read_file(folder: Path, manifest: dict[str, Any], name: str) -> bytes:
    """The bytes of a file, checked against the manifest."""
    path, known = folder / name, manifest["files"][name]
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). {AGAIN}") from None
    if len(content) != known["bytes"]:
        raise DataError(f"{path}: has {len(content)} bytes instead of {known['bytes']}. {AGAIN}")
    if _sha256(content) != known["sha256"]:
        raise DataError(f"{path}: is damaged (its SHA-256 differs from the manifest's). {AGAIN}")
    return content


def _read_labels(folder: Path, manifest: dict[str, Any]) -> dict[str, np.ndarray]:
    content = _read_file(folder, manifest, "labels.npz")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            found = {re.sub("^val_", "test_", key): arrays[key] for key in arrays}
            return {key: values for key, values in found.items() if key.split("_")[0] in SPLITS}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{folder / 'labels.npz'}: cannot be decoded ({error}). {AGAIN}") from None


def _read_split(folder: Path, manifest: dict[str, Any], split: str) -> np.ndarray:
    """All images of a split, uint8 (N, C, H, W)."""
    lossy = _is_lossy(manifest)
    stem = "val" if lossy and split == "test" else split
    names = sorted(
        (n for n in manifest["files"] if n.startswith(f"{stem}-")), key=lambda n: (len(n), n)
    )
    if not names:
        raise DataError(f"{folder / 'manifest.json'}: names no sheet {stem}-00.webp. {AGAIN}")
    mode = manifest.get("mode", "RGB")
    pixels = np.concatenate([_read_sheet(folder, manifest, name, mode) for name in names])
    pixels = pixels[
        : manifest.get(stem, len(pixels))
    ]  # the number of images; a pack without it fills every sheet
    if not lossy and _sha256(pixels) != manifest[f"{split}_pixels_sha256"]:
        raise DataError(
            f"{folder}: the decoded {split} pixels differ from the manifest's SHA-256. {AGAIN}"
        )
    return pixels


def _read_sheet(folder: Path, manifest: dict[str, Any], name: str, mode: str) -> np.ndarray:
    """The images of one sheet, uint8 (1000 or 256, C, H, W)."""
    content = _read_file(folder, manifest, name)
    try:
        sheet = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        grid = LOSSY_GRID if _is_lossy(manifest) else (COLUMNS, ROWS)
        return _cut(
            sheet[..., :1] if mode == "L" else sheet, *grid
        )  # WebP knows no grey: its three channels are equal
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / name}: cannot be decoded ({error}). {AGAIN}") from None


def _is_lossy(manifest: dict[str, Any]) -> bool:
    return any(name.endswith(".jpg") for name in manifest["files"])


# ---------------------------------------------------------------------- writing


def _check_arrays(images: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> None:
    for split, pixels in images.items():
        if (
            pixels.dtype != np.uint8
            or pixels.ndim != 4
            or pixels.shape[1] not in (1, 3)
            or len(pixels) == 0
        ):
            raise ValueError(
                f"{split}_images: need uint8 (N, 1 or 3, H, W), got {pixels.dtype} {pixels.shape}"
            )
    for key, values in labels.items():
        split = key.split("_")[0]
        if split not in images or len(values) != len(images[split]) or values.dtype == object:
            raise ValueError(f"{key}: need a plain array train_* or test_* with one entry an image")


def _write_split(folder: Path, split: str, pixels: np.ndarray) -> None:
    for i, start in enumerate(range(0, len(pixels), SHEET)):
        sheet = _paste(pixels[start : start + SHEET])
        rgb = np.broadcast_to(sheet, (*sheet.shape[:2], 3))
        # method 4 takes 0.3 s a sheet; method 6 with quality 100 saves 1.5 % for 25 times the time
        path = folder / f"{split}-{i:02d}.webp"
        Image.fromarray(np.ascontiguousarray(rgb)).save(
            path, "WEBP", lossless=True, quality=50, method=4
        )


def _manifest(folder: Path, name: str, images: dict[str, np.ndarray]) -> dict[str, Any]:
    _, channels, height, width = images["train"].shape
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    return {
        "name": name,
        "format": f"lossless WebP sprites, {SHEET} images of {width}x{height} each, {COLUMNS} columns x {ROWS} rows, "
        "row-major, original order, last sheet of a split filled up with black",
        "mode": "L" if channels == 1 else "RGB",
        **{split: len(pixels) for split, pixels in images.items()},
        **{f"{split}_pixels_sha256": _sha256(pixels) for split, pixels in images.items()},
        "pixels_note": f"sha256 of uint8 C-order array (N,{channels},{height},{width})",
        "files": {
            key: {"bytes": len(content), "sha256": _sha256(content)}
            for key, content in files.items()
        },
    }


# ---------------------------------------------------------------------- the sheet


def _cut(sheet: np.ndarray, columns: int, rows: int) -> np.ndarray:
    """(rows H, columns W, C) -> (rows columns, C, H, W)."""
    height, width = sheet.shape[0] // rows, sheet.shape[1] // columns
    cells = sheet.reshape(rows, height, columns, width, -1).transpose(0, 2, 4, 1, 3)
    return cells.reshape(rows * columns, -1, height, width)


def _paste(images: np.ndarray) -> np.ndarray:
    """(up to 1000, C, H, W) -> (25 H, 40 W, C)."""
    _, channels, height, width = images.shape
    cells = np.zeros((SHEET, channels, height, width), np.uint8)
    cells[: len(images)] = images
    cells = cells.reshape(ROWS, COLUMNS, channels, height, width).transpose(0, 3, 1, 4, 2)
    return cells.reshape(ROWS * height, COLUMNS * width, channels)


def _sha256(content: bytes | np.ndarray) -> str:
    return hashlib.sha256(
        np.ascontiguousarray(content) if isinstance(content, np.ndarray) else content
    ).hexdigest()
