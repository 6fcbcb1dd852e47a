"""The training loop as it is usually written: used only to measure the engine against.

PIL images and torchvision transforms in the worker processes of a DataLoader, PyTorch's own
precision (float32, on a GPU with TF32 in the convolutions), the teacher as trained, `.item()` in
every step. Networks, method and optimiser settings are the same as the engine's.
"""

import os
from collections.abc import Mapping

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from iekd import data
from iekd.config import RunConfig, methods
from iekd.method.features import Batch
from iekd.networks import Output
from iekd.training.run import build_network


class Images(Dataset):
    """Training images as torchvision's data sets return them: transformed PIL images."""

    def __init__(self, dataset: data.DataSet):
        self.pixels = dataset.train.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = dataset.train.labels.tolist()
        flip = [transforms.RandomHorizontalFlip()] if dataset.flip else []
        crop = transforms.RandomCrop(
            self.pixels.shape[1], padding=dataset.pad, padding_mode="reflect"
        )
        self.transform = transforms.Compose(
            [crop, *flip, transforms.ToTensor(), transforms.Normalize(dataset.mean, dataset.std)]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
        pixels = self.pixels[index]
        if pixels.shape[-1] == 1:
            pixels = pixels.squeeze(-1)
        return self.transform(Image.fromarray(pixels)), self.labels[index], index


class PlainRun:
    """`train_epoch()` is one pass over the training images. `teacher_grad` keeps the frozen teacher
    under autograd, a common oversight.
    """

    def __init__(
        self,
        config: RunConfig,
        parents: Mapping[str, nn.Module],
        device: torch.device,
        dataset: data.DataSet,
        teacher_grad: bool = False,
    ):
        self.device, self.teacher_grad = device, teacher_grad
        self.student = build_network(config.student, config).to(device)
        self.teacher = parents["teacher"].to(device).eval() if parents else None
        self.autoencoder = None
        if "autoencoder" in parents:
            self.autoencoder = parents["autoencoder"].to(device).eval()
        networks = self.student, self.teacher, self.autoencoder
        self.method = methods.build(config, *networks, dataset.train.labels).to(device)
        for parent in parents.values():
            parent.requires_grad_(teacher_grad)
        parameters = [*self.student.parameters(), *self.method.parameters()]
        self.optimiser = torch.optim.SGD(
            parameters, config.lr, config.momentum, weight_decay=config.weight_decay, nesterov=True
        )
        self.loader = DataLoader(
            Images(dataset),
            config.batch_size,
            shuffle=True,
            num_workers=min(8, os.cpu_count() or 1),
            pin_memory=device.type == "cuda",
            persistent_workers=True,
        )

    def train_epoch(self) -> tuple[float, float]:
        """Mean loss and error in percent."""
        self.student.train()
        self.method.train()
        total = wrong = 0.0
        for images, labels, index in self.loader:
            images, labels, index = (t.to(self.device) for t in (images, labels, index))
            target = self._teach(images) if self.teacher is not None else None
            output = self.student(images)
            loss = sum(self.method(Batch(labels, index), output, target).values())
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
            total += loss.item() * len(labels)
            wrong += (output.logits.argmax(1) != labels).sum().item()
        count = len(self.loader.dataset)
        return total / count, 100 * wrong / count

    def _teach(self, images: torch.Tensor) -> Output:
        with torch.set_grad_enabled(self.teacher_grad):
            output = self.teacher(images)
            if self.autoencoder is not None:
                output.features["factor"] = self.autoencoder.encoder(output.feature)
            return output
