"""Reading ImageNet's files: our stream against ImageFolder with PIL, on files written here.

Both sides deliver an epoch of random resized crops, mirrored half of the time, as normalised
batches on the device, with the same number of processes.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from iekd import data
from iekd.benchmark.timing import in_turns, now, speeds
from iekd.data import augment, stream

# Close to ImageNet's mean: 110 kB per file of this size.
WIDTH, HEIGHT, QUALITY, GRAIN = 500, 375, 92, 20
BATCH = 64
USUAL, OURS = "ImageFolder, PIL", "stream"


def compare(images: int, rounds: int, device: torch.device) -> list[dict[str, Any]]:
    """One row per side: images per second (median), and as a multiple of the usual loader's."""
    with tempfile.TemporaryDirectory() as name:
        folder = write(Path(name), images)
        sides = {USUAL: usual(folder, device), OURS: ours(folder, device)}
        times = in_turns(sides, rounds, device, "loader")
        size = sum(path.stat().st_size for path in folder.rglob("*.jpg")) // images
    found = speeds(times, images)
    about = {"images": images, "bytes": size, "workers": stream.workers()}
    return [{**about, "side": side, **found[side]} for side in sides]


def write(folder: Path, images: int) -> Path:
    """Write photograph-like JPEGs of two classes: coarse patches with grain on top."""
    random = np.random.default_rng(0)
    for number in range(images):
        place = folder / f"class{number % 2}"
        place.mkdir(exist_ok=True)
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8))
        smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.float32)
        grain = random.normal(0, GRAIN, smooth.shape).astype(np.float32)
        pixels = (smooth + grain).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.jpg", quality=QUALITY)
    return folder


def usual(folder: Path, device: torch.device) -> Callable[[], None]:
    """Reads an epoch the usual way."""
    facts = data.FACTS["imagenet"]
    crop = [transforms.RandomResizedCrop(facts.side), transforms.RandomHorizontalFlip()]
    form = [transforms.ToTensor(), transforms.Normalize(facts.mean, facts.std)]
    how: dict[str, Any] = dict(num_workers=stream.workers(), pin_memory=device.type == "cuda")
    files = ImageFolder(folder, transforms.Compose(crop + form))
    loader = DataLoader(files, BATCH, shuffle=True, **how)

    def epoch() -> None:
        for images, _ in loader:
            images.to(device, non_blocking=True, memory_format=torch.channels_last)
        now(device)

    return epoch


def ours(folder: Path, device: torch.device) -> Callable[[], None]:
    """Reads an epoch as a run does."""
    facts = data.FACTS["imagenet"]
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.jpg"))
    files = stream.Files(folder, np.array(names, np.bytes_), facts.side)
    source, generator = stream.Stream(files, device), torch.Generator().manual_seed(0)
    mean, std = (torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (facts.mean, facts.std))

    def epoch() -> None:
        order = torch.randperm(len(source), generator=generator)
        draws = augment.draw(len(source), stream.PAD, facts.flip, generator)
        parts = torch.stack([order, *draws]).split(BATCH, dim=1)
        source.expect(parts)
        for _ in parts:
            augment.normalise(source.next(), mean, std)
        now(device)

    return epoch
