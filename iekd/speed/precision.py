"""The precision of a run: float32, TensorFloat-32 (a GPU's float32 with ten bits of mantissa in
convolutions and products), or bfloat16 where it is safe: convolutions and matrix products of the
networks. Parameters, normalisation and losses stay in float32.

bfloat16 pays on GPUs with tensor cores and on processors with AMX; elsewhere it may be slower than
float32.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import MethodType

import torch
from torch import Tensor, nn

from iekd.networks import Output


def set_tf32(precision: str) -> None:
    """From now on, this process computes float32 in TF32 on a GPU, or strictly not. PyTorch's
    default is TF32 for convolutions only.

    This holds for the whole process: make a run, then train it, before making one of another
    precision (packs have a single precision).
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"


@contextmanager
def undisturbed() -> Iterator[None]:
    """Inside, a run comes out the same whatever the caller has set in PyTorch: no gradients,
    autocast, another default type or device.
    """
    dtype = torch.get_default_dtype()
    with ExitStack() as asked:
        asked.enter_context(torch.inference_mode(False))
        asked.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda"):
            asked.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":
            asked.enter_context(torch.device("cpu"))
        torch.set_default_dtype(torch.float32)
        asked.callback(torch.set_default_dtype, dtype)
        yield


def train_in_bf16(network: nn.Module) -> nn.Module:
    """Let a network compute in bfloat16 while it is in training mode; its outputs are float32."""
    network.forward = MethodType(_forward, network)  # bound, so that a deep copy has its own
    return network


def freeze_in_bf16(network: nn.Module) -> nn.Module:
    """Convolutions and products of a frozen network in bfloat16, to be called within `autocast`."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.bfloat16()
    return network


def autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16)


def widen(output: Output) -> Output:
    """Logits and features in float32."""
    features = {name: feature.float() for name, feature in output.features.items()}
    return Output(output.logits.float(), features)


def _forward(network: nn.Module, images: Tensor) -> Output:
    plain = type(network).forward
    if not network.training:
        return plain(network, images)
    with autocast(images.device):
        output = plain(network, images)
    return widen(output)
