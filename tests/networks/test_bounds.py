"""Networks read and write within their memory: a fault of PyTorch's kernels would end a training, or
worse, would not.
"""

import os
import subprocess
import sys

import pytest

from iekd.config.presets import SCALE_DEFAULTS, usual

# Says what it tries before it does.
STEPS = """
import sys, torch
from iekd import networks
for words in sys.argv[1:]:
    name, classes, batch, side, steps = words.split()
    print(words, flush=True)
    network = networks.build(name, int(classes)).to(memory_format=torch.channels_last)
    for _ in range(int(steps)):
        images = torch.randn(int(batch), 3, int(side), int(side))
        images = images.contiguous(memory_format=torch.channels_last)
        network(images).logits.sum().backward()
"""
# Sizes: CIFAR 8 to 32, Imagenette 64, detection 64 to 128, ImageNet 224. Networks: those of the
# presets, the narrowest planned, the paper's.
NARROW = {
    *(SCALE_DEFAULTS["class", "imagenette"][role] for role in ("teacher", "student")),
    *("resnet10x0.125", "resnet10x0.125_3x3", "resnet18x0.125_3x3"),
    *("resnet10x0.0625_3x3", "resnet34x0.25_3x3"),
}
DETECTORS = [
    f"{usual(preset, dataset)[role]} 3 8 {side} 5"
    for preset, dataset, side in (("class", "bccd", 128), ("smoke", "discs", 64))
    for role in ("teacher", "student")
]
TRIED = {
    "CIFAR": [f"resnet8x{m} 10 64 {side} 20" for m in (0.25, 0.5) for side in (8, 16, 32)],
    "ImageNet": [f"{name} 10 8 {side} 3" for name in sorted(NARROW) for side in (64, 96, 128)],
    "the paper": [
        f"{name} 10 2 {side} 3" for name in ("resnet18", "resnet34") for side in (64, 224)
    ],
    "boxes": DETECTORS,
}


@pytest.mark.parametrize("kind", TRIED)
def test_networks_stay_within_their_memory(kind):
    """In a process of its own, which a fault would end; glibc, where it can, looks for what was
    overwritten.
    """
    environment = {**os.environ, "LD_PRELOAD": "libc_malloc_debug.so.0", "MALLOC_CHECK_": "3"}
    command = [sys.executable, "-c", STEPS, *TRIED[kind]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout.splitlines()[-1:]} {done.stderr[-500:]}"
