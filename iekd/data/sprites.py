"""The sprite pack: an image data set as lossless WebP sheets, small enough to carry on a USB stick.

A pack is a folder with `train-00.webp`, `test-00.webp`, ... (1000 images each in their original
order, 40 columns x 25 rows, row-major; the last sheet of a split is padded with black),
`labels.npz` (arrays named `train_*` and `test_*`, one entry per image) and `manifest.json` (size
and SHA-256 of every file, SHA-256 of the decoded pixels of each split). CIFAR-10 takes 102 MB, its
official archive 170. Every byte read is checked: USB sticks do corrupt files.

A lossy pack can be read, but is never written: JPEG sheets of 256 images (16 x 16), the second
split called `val`, and no hash of the pixels, because JPEG decoders differ in rounding.
"""

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
LOSSY_COLUMNS, LOSSY_ROWS = 16, 16
SPLITS = ("train", "test")
# Files that show that a folder is, or was, a pack.
TRACES = ("manifest.json", "labels.npz", "train-00.webp", "train-00.jpg")


def read_pack(folder: Path) -> dict[str, np.ndarray]:
    """Decode a pack: `train_images`, `test_images`, uint8 (N, C, H, W), and its arrays of labels.

    Raises `DataError` for a file that is missing, truncated or changed, and for labels or pixels
    that do not fit.
    """
    manifest = _read_manifest(folder)
    arrays = _read_labels(folder, manifest)
    lengths = {key: len(values) for key, values in arrays.items()}
    for split in SPLITS:
        arrays[f"{split}_images"] = _read_split(folder, manifest, split)

    # One label per image.
    for key, length in lengths.items():
        expected = len(arrays[f"{key.split('_')[0]}_images"])
        if length != expected:
            raise _bad(folder / "labels.npz", f"{length} entries in {key} for {expected} images")
    return arrays


def write_pack(folder: Path, name: str, **arrays: np.ndarray) -> dict[str, Any]:
    """Write `train_images` and `test_images`, uint8 (N, 1 or 3, H, W), and arrays of labels.

    These are named `train_*` or `test_*` and have one entry per image. Returns the manifest. The
    folder appears completely or not at all. Raises `DataError` if it exists already.
    """
    if folder.exists():
        raise DataError(f"{folder}: exists already. Remove it, or name another folder.")
    images = {split: np.ascontiguousarray(arrays.pop(f"{split}_images")) for split in SPLITS}
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        np.savez_compressed(part / "labels.npz", **arrays)  # type: ignore[arg-type]
        for split, pixels in images.items():
            _write_split(part, split, pixels)
        manifest = _manifest(part, name, images)
        (part / "manifest.json").write_text(json.dumps(manifest, indent=1))
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return manifest


def pack_name(folder: Path) -> str | None:
    """The data set that a pack says it holds; None if it does not say, or there is no pack."""
    try:
        return json.loads((folder / "manifest.json").read_bytes()).get("name")
    except (OSError, ValueError, AttributeError):
        return None


# ---------------------------------------------------------------------- reading


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, checked for everything that is read from it below."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_bytes())
        needed = [(known["bytes"], known["sha256"]) for known in manifest["files"].values()]
        needed.append(manifest["files"]["labels.npz"])
        if not _is_lossy(manifest):
            needed += [manifest[f"{split}_pixels_sha256"] for split in SPLITS]
    except FileNotFoundError:
        raise _bad(path, "missing, so nothing in this folder can be checked") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = f"cannot be used as the manifest of a sprite pack ({error!r})"
        raise _bad(path, why) from None
    return manifest


def _read_file(folder: Path, manifest: dict[str, Any], name: str) -> bytes:
    """The bytes of a file, checked against the manifest."""
    path, known = folder / name, manifest["files"][name]
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _bad(path, f"cannot be read ({error.strerror})") from None
    if len(content) != known["bytes"]:
        raise _bad(path, f"has {len(content)} bytes instead of {known['bytes']}")
    if _sha256(content) != known["sha256"]:
        raise _bad(path, "is damaged (its SHA-256 differs from the manifest's)")
    return content


def _read_labels(folder: Path, manifest: dict[str, Any]) -> dict[str, np.ndarray]:
    content = _read_file(folder, manifest, "labels.npz")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            found = {re.sub("^val_", "test_", key): arrays[key] for key in arrays}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise _bad(folder / "labels.npz", f"cannot be decoded ({error})") from None
    return {key: values for key, values in found.items() if key.split("_")[0] in SPLITS}


def _read_split(folder: Path, manifest: dict[str, Any], split: str) -> np.ndarray:
    """All images of a split, uint8 (N, C, H, W)."""
    lossy = _is_lossy(manifest)
    stem = "val" if lossy and split == "test" else split
    names = [name for name in manifest["files"] if name.startswith(f"{stem}-")]
    if not names:
        raise _bad(folder / "manifest.json", f"names no sheet {stem}-00.webp")
    # Sheet 100 comes after sheet 99.
    names.sort(key=lambda name: (len(name), name))
    pixels = np.concatenate([_read_sheet(folder, manifest, name) for name in names])

    # The number of images; without it, every sheet is full.
    pixels = pixels[: manifest.get(stem, len(pixels))]
    if not lossy and _sha256(pixels.data) != manifest[f"{split}_pixels_sha256"]:
        raise _bad(folder, f"the decoded {split} pixels differ from the manifest's SHA-256")
    return pixels


def _read_sheet(folder: Path, manifest: dict[str, Any], name: str) -> np.ndarray:
    """The images of one sheet, uint8 (1000 or 256, C, H, W)."""
    content = _read_file(folder, manifest, name)
    columns, rows = (LOSSY_COLUMNS, LOSSY_ROWS) if _is_lossy(manifest) else (COLUMNS, ROWS)
    # WebP has no greyscale: the three channels of such a sheet are equal.
    channels = 1 if manifest.get("mode") == "L" else 3
    try:
        sheet = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))[..., :channels]
        height, width = sheet.shape[0] // rows, sheet.shape[1] // columns
        cells = sheet.reshape(rows, height, columns, width, channels).transpose(0, 2, 4, 1, 3)
        return cells.reshape(rows * columns, channels, height, width)
    except (OSError, ValueError) as error:
        raise _bad(folder / name, f"cannot be decoded ({error})") from None


def _bad(path: Path, why: str) -> DataError:
    ways_out = "Copy the folder again from where it came from, or recreate it with"
    return DataError(f"{path}: {why}. {ways_out} `iekd data pack`.")


def _is_lossy(manifest: dict[str, Any]) -> bool:
    return any(name.endswith(".jpg") for name in manifest["files"])


# ---------------------------------------------------------------------- writing


def _write_split(folder: Path, split: str, pixels: np.ndarray) -> None:
    height, width = pixels.shape[2:]
    for start in range(0, len(pixels), SHEET):
        # Up to 1000 images, (C, H, W) each, as one (25 H, 40 W, 3).
        some = pixels[start : start + SHEET]
        cells = np.zeros((SHEET, 3, height, width), np.uint8)
        cells[: len(some)] = some
        cells = cells.reshape(ROWS, COLUMNS, 3, height, width).transpose(0, 3, 1, 4, 2)
        sheet = Image.fromarray(cells.reshape(ROWS * height, COLUMNS * width, 3))

        # Method 4 takes 0.3 s per sheet; method 6 with quality 100 saves 1.5 % for 25 times the
        # time.
        path = folder / f"{split}-{start // SHEET:02d}.webp"
        sheet.save(path, "WEBP", lossless=True, quality=50, method=4)


def _manifest(folder: Path, name: str, images: dict[str, np.ndarray]) -> dict[str, Any]:
    _, channels, height, width = images["train"].shape
    manifest: dict[str, Any] = {
        "name": name,
        "format": f"lossless WebP sprites, {SHEET} images of {width}x{height} each, "
        f"{COLUMNS} columns x {ROWS} rows, row-major, original order, "
        "last sheet of a split filled up with black",
        "mode": "L" if channels == 1 else "RGB",
        "pixels_note": f"sha256 of uint8 C-order array (N,{channels},{height},{width})",
        "files": {},
    }
    for split, pixels in images.items():
        manifest[split] = len(pixels)
        manifest[f"{split}_pixels_sha256"] = _sha256(pixels.data)
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        manifest["files"][path.name] = {"bytes": len(content), "sha256": _sha256(content)}
    return manifest


def _sha256(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()
