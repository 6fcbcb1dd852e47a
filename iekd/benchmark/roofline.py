"""The floor under a training step: no step can be faster than its arithmetic and its memory traffic
at the machine's rates.

Both rates are measured on the device; the work is counted from the networks' shapes. It is a floor
for these networks computed operator by operator, not a prediction: launches, small shapes and the
method's own loss come on top.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from iekd import data, networks
from iekd.benchmark.timing import in_turns
from iekd.config import RunConfig
from iekd.speed import precision
from iekd.sweeps.cost import flops

FLOAT = 4  # bytes
# The least number of times that a convolution's output passes through memory: written, and read by
# what follows; in training it is read again for the gradient, whose own tensor is written and read.
FROZEN, TRAINED = 2, 5
ROUNDS = 20


def rates(device: torch.device) -> dict[str, float]:
    """What the device can do: GFLOP/s in float32, TF32 (on a GPU) and bfloat16 (a large matrix
    product or convolution, the faster one), GB/s of a copy.
    """
    names = {"gflops": "fp32", "gflops_tf32": "tf32", "gflops_bf16": "bf16"}
    if device.type != "cuda":
        del names["gflops_tf32"]
    able = {name: arithmetic(how, device) for name, how in names.items()}
    return {**able, "gbytes": copy(device)}


def roof(config: RunConfig, rates: Mapping[str, float]) -> dict[str, Any]:
    """The work of student and teacher for an image of this run (GFLOP, MB), and the images per
    second that each rate allows.
    """
    side = data.image_shape(config)[-1]
    # network, passes of its arithmetic, passes over its outputs
    parts = [(config.student, 3, TRAINED)]
    if config.has_teacher:
        parts.append((config.teacher, 1, FROZEN))
    work = sum(passes * flops(name, config.dataset, side) for name, passes, _ in parts)
    traffic = sum(FLOAT * passes * outputs(name, config) for name, _, passes in parts)
    need = dict.fromkeys(rates, work) | {"gbytes": traffic}
    able = {name: round(rate, 1) for name, rate in rates.items()}
    limits = {f"{name}_limit": round(rates[name] * 1e9 / need[name], 1) for name in rates}
    about = {"preset": config.preset, "pair": config.pair, "method": config.method}
    return {**about, "gflop": work / 1e9, "mbyte": traffic / 1e6, **able, **limits}


def outputs(network: str, config: RunConfig) -> int:
    """The number of values that a network's convolutions output for one image."""
    counted: list[int] = []

    def count(convolution: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        counted.append(output.numel())

    shape, classes = data.image_shape(config), data.FACTS[config.dataset].num_classes
    with torch.device("meta"), torch.no_grad():  # shapes only
        built = networks.build(network, classes, shape[0]).eval()
        for module in built.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(count)
        built(torch.empty(1, *shape))
    return sum(counted)


def arithmetic(how: str, device: torch.device) -> float:
    """GFLOP/s in a precision of `RunConfig`, which this process uses from now on."""
    precision.set_tf32(how)
    dtype = torch.bfloat16 if how == "bf16" else torch.float32
    size, channels, side = (8192, 256, 64) if device.type == "cuda" else (1024, 64, 16)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = 2 * size**3 / _seconds(lambda: a @ b, device)

    # The convolution.
    form: dict[str, Any] = {"dtype": dtype, "memory_format": torch.channels_last}
    images = torch.randn(128, channels, side, side, device=device).to(**form)
    weight = torch.randn(channels, channels, 3, 3, device=device).to(**form)
    seconds = _seconds(lambda: torch.conv2d(images, weight, padding=1), device)
    return max(product, 2 * 9 * channels * images.numel() / seconds) / 1e9


def copy(device: torch.device) -> float:
    """GB/s of a large copy, reading and writing."""
    # far larger than any cache, or most
    source = torch.rand(2**28 if device.type == "cuda" else 2**26, device=device)
    target = torch.empty_like(source)
    return 2 * FLOAT * source.numel() / _seconds(lambda: target.copy_(source), device) / 1e9


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    """The shortest time of a piece of work: a floor is about the best case."""
    return min(in_turns({"": work}, ROUNDS, device)[""])
