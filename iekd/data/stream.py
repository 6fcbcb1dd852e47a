"""Images that stay in their files: what a `Split` has if they do not fit into a tensor.

A row of an epoch's plan determines an image completely: its index, two numbers from which the
random resized crop is drawn, and flip. So neither order nor pixels depend on how many processes
read ahead: IEKD_WORKERS, by default one per core.
"""

import os
import signal
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as F

from iekd.errors import ConfigError, DataError

# The usual crop for ImageNet: its fraction of the area, and its aspect ratio.
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
# The evaluation crop: the middle 224/256 of the shorter side, in a plan the number -1.
MIDDLE, CENTRE = 224 / 256, -1
# Takes the place of the padding of images in a tensor: random numbers from 0 to twice this.
PAD = 2**26
# Images that are read at once where no plan says how many.
BATCH = 250


class Files(Dataset):
    """A cropped image by its row of a plan, uint8 (3, side, side), decoded here."""

    def __init__(self, folder: Path, names: np.ndarray, side: int):
        self.folder, self.names, self.side = folder, names, side

    def path(self, index: int) -> Path:
        return self.folder / os.fsdecode(self.names[index])

    def __getitem__(self, row: Any) -> Tensor:
        index, number, _, flip = row
        path = self.path(index)
        try:
            with Image.open(path) as opened:  # torchvision's own decoder is deprecated
                image = F.pil_to_tensor(opened.convert("RGB"))
        except (OSError, ValueError, SyntaxError) as error:
            raise unreadable(path, error) from None
        size = [self.side, self.side]
        cropped = F.resized_crop(image, *box(image, number), size, antialias=True)
        return cropped.flip(-1) if flip else cropped


def box(image: Tensor, number: int) -> tuple[int, int, int, int]:
    """Top, left, height and width of the crop that a number in a plan encodes."""
    if number == CENTRE:
        height, width = image.shape[1:]
        side = max(1, round(MIDDLE * min(height, width)))
        return (height - side) // 2, (width - side) // 2, side, side
    # torchvision draws from torch's own generator; that of a GPU is left alone
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(number)
        return RandomResizedCrop.get_params(image, list(SCALE), list(RATIO))


class Stream:
    """Image files, used like a tensor, uint8 (N, 3, side, side), on a device.

    As a tensor they are centre crops. In training, `expect` is given the parts of the epoch's plan,
    and each `next` returns the crops of one of them.
    """

    def __init__(self, files: Files, device: torch.device | str = "cpu"):
        self.files, self.device, self.workers = files, torch.device(device), workers()
        self.coming, self.left = self._read([]), 0

    def __len__(self) -> int:
        return len(self.files.names)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self), 3, self.files.side, self.files.side

    def to(self, device: torch.device | str) -> "Stream":
        # as with a tensor: runs that share a data set share what is read
        return self if torch.device(device) == self.device else Stream(self.files, device)

    def only(self, index: Tensor, side: int = 0) -> "Stream":
        """Some of the images, at another size (0 = the same)."""
        names, side = self.files.names[index.numpy()], side or self.files.side
        return Stream(Files(self.files.folder, names, side), self.device)

    def __getitem__(self, index: Any) -> Tensor:
        chosen = torch.arange(len(self), device=self.device)[index].cpu()
        return torch.cat([*self._read(map(_centred, chosen.split(BATCH)))])

    def split(self, size: int) -> Iterator[Tensor]:
        return self._read(map(_centred, torch.arange(len(self)).split(size)))

    def expect(self, parts: Sequence[Tensor]) -> None:
        """Announce the parts (4, B) of a plan that will be requested, in this order."""
        # to the CPU now: later that would wait for the device
        self.coming, self.left = self._read([part.cpu() for part in parts]), len(parts)

    def next(self) -> Tensor:
        """The images of the next of these parts, uint8 (B, 3, side, side)."""
        pixels, self.left = next(self.coming), self.left - 1
        if self.left == 0:
            # the workers exit now, not at garbage collection
            self.coming.close()
        return pixels

    def _read(self, parts: Iterable[Tensor]) -> Generator[Tensor, None, None]:
        rows = (part.T.tolist() for part in parts)
        for pixels in read_ahead(self.files, rows, self.workers, self.device.type == "cuda"):
            yield pixels.to(self.device, non_blocking=True)


def _centred(index: Tensor) -> Tensor:
    """Rows of a plan (4, B) for the centre crops of these images."""
    number = torch.full_like(index, CENTRE)
    return torch.stack([index, number, number, torch.zeros_like(index)])


def read_ahead(
    files: Dataset, batches: Iterable[list], workers: int, pinned: bool = False
) -> Generator[Tensor, None, None]:
    """The items of a data set in batches of its keys, read by `workers` processes (0 = this one).

    Raises `DataError` for a file that cannot be decoded.
    """
    how: dict[str, Any] = dict(num_workers=workers, pin_memory=pinned)
    # torch's own generator is left alone
    how |= dict(generator=torch.Generator(), worker_init_fn=_leave_signals)
    try:
        yield from DataLoader(files, batch_sampler=batches, **how)
    except DataError as error:
        # only the message of a worker's traceback
        raise DataError(str(error).strip().rpartition("DataError: ")[2]) from None


def unreadable(path: Path, error: Exception) -> DataError:
    reason = str(error).partition("\n")[0]
    return DataError(f"{path}: cannot be decoded ({reason}). Replace it by an intact copy.")


def workers() -> int:
    """How many processes read ahead. Raises `ConfigError` if that is not a number."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    # the processes of torchrun share the cores
    share = cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    word = os.environ.get("IEKD_WORKERS", str(share))
    if not word.isdecimal():
        raise ConfigError(f"IEKD_WORKERS: {word!r} is not usable; choose a number from 0")
    return int(word)


def _leave_signals(_: int) -> None:
    """Ctrl-C and a closed terminal are for the process that trains, which ends its workers."""
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
