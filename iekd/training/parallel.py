"""One run on several processes: `torchrun --standalone --nproc-per-node 2 -m iekd run ...`. In one process all of this does nothing.

Every process makes the same steps with the same whole batches. Only the networks are split: called with a batch, a network computes
this process's share of it and gives back the outputs of the whole batch, gathered (`spread`). So a method sees what it sees in one
process, whatever its loss compares within a batch, and needs to know nothing of this. Batch normalisation within a network takes the
statistics of the whole batch. What comes out differs from one process by the rounding of sums taken in another order.

The first process alone reads and writes checkpoints, records and weights; what it finds, or its error, holds for all (`lead`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed, nn

from iekd.errors import ConfigError
from iekd.networks import Output

if TYPE_CHECKING:
    from iekd.training.engine import Run

LONGEST = timedelta(
    minutes=30
)  # that one process waits for another: the first may download the data


def launched() -> int:
    """How many processes torchrun has started for this run; 1 without it."""
    return (
        int(os.environ["WORLD_SIZE"])
        if {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= os.environ.keys()
        else 1
    )


@contextmanager
def joined() -> Iterator[bool]:
    """Inside, this process is one of those that torchrun has started, with a GPU of its own if there are any. Yields whether it is the
    first one, or the only one.

    Raises `ConfigError` if there are fewer GPUs than processes. An error leaves without a word to the others, who may be waiting for
    this process in the middle of a step: they, or torchrun, see it end.
    """
    if launched() == 1:
        yield True
        return
    if torch.cuda.is_available():
        _take_gpu(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=LONGEST
    )
    yield rank() == 0
    distributed.destroy_process_group()


def _take_gpu(number: int) -> None:
    if number >= (there := torch.cuda.device_count()):
        raise ConfigError(
            f"torchrun: more processes than GPUs; choose --nproc-per-node {there}, or CUDA_VISIBLE_DEVICES= for the CPU"
        )
    torch.cuda.set_device(number)


def count() -> int:
    """The processes of this run."""
    return (
        distributed.get_world_size()
        if distributed.is_available() and distributed.is_initialized()
        else 1
    )


def rank() -> int:
    """The number of this process, 0 for the first or only one."""
    return distributed.get_rank() if count() > 1 else 0


# ---------------------------------------------------------------------- decisions


def share(value: Any) -> Any:
    """The first process's value, in all of them."""
    if count() > 1:
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        (value,) = box
    return value


def lead(task: Callable, *arguments: Any) -> Any:
    """`task(*arguments)` done by the first process alone: all return its result, or raise its exception."""
    if count() == 1:
        return task(*arguments)
    result, error = None, None
    if rank() == 0:
        try:
            result = task(*arguments)
        except Exception as raised:
            error = raised
    result, error = share((result, error))
    if error is not None:
        raise error
    return result


def highest(number: int) -> int:
    """The highest of the numbers that the processes have."""
    if count() > 1:
        box = torch.tensor(number)
        distributed.all_reduce(box, distributed.ReduceOp.MAX)
        number = int(box)
    return number


def align(tensors: Mapping[str, Tensor]) -> None:
    """Give the tensors of all processes the first one's values, in place."""
    if count() > 1:
        for tensor in tensors.values():
            whole = tensor.contiguous()
            distributed.broadcast(whole, src=0)
            tensor.copy_(whole)


# ---------------------------------------------------------------------- networks


def spread(run: Run) -> None:
    """From now on the networks of a run compute a share of each batch in each process, in training as in evaluation, and the
    optimiser steps along the gradient of the whole batch."""
    if count() == 1:
        return
    for network in (
        run.teacher,
        *(run.learner[role] for role in ("student", "peer") if role in run.learner),
    ):
        if isinstance(network, nn.Module):
            _split(network)
    run.optimiser.register_step_pre_hook(lambda *_: _sum_gradients(run.learner))


def _split(network: nn.Module) -> None:
    """Bind a forward that shares its work. Names in the state dict stay."""
    alone = network.forward  # perhaps one in bfloat16
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.forward = MethodType(_normalise, module)

    def forward(images: Tensor) -> Output:
        output = alone(images.tensor_split(count())[rank()])
        return Output(gather(output.logits, len(images)), Gathered(output.features, len(images)))

    network.forward = forward


def _sum_gradients(learner: nn.ModuleDict) -> None:
    """Add up what each share contributes to the gradients of the networks. Those of the method are those of the whole batch already:
    their mean keeps the processes equal to the last bit."""
    for parameter in learner["method"].parameters():
        if parameter.grad is not None:
            parameter.grad /= count()
    gradients = [p.grad for p in learner.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    for gradient, total in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(total.view_as(gradient))


class Gathered(Mapping[str, Tensor]):
    """Features of the whole batch, each gathered when it is first read: a method reads few of them, and they can be large.

    All processes must read the same ones in the same order.
    """

    def __init__(self, shares: Mapping[str, Tensor], rows: int):
        self.shares, self.rows = shares, rows
        self.whole: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.whole:
            with (
                torch.enable_grad()
            ):  # who reads first decides nothing: a share without gradient stays so
                self.whole[name] = gather(self.shares[name], self.rows)
        return self.whole[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.shares)

    def __len__(self) -> int:
        return len(self.shares)


def gather(share: Tensor, rows: int) -> Tensor:
    """The shares (b, ...) of all processes, as `tensor_split` makes them, put together again: (rows, ...), images in channels_last.

    Differentiable where every process makes the same loss of the result: the gradient of a share is then the part that belongs to it.
    """
    if share.dim() == 4:
        return _Gather.apply(share.permute(0, 2, 3, 1), rows).permute(0, 3, 1, 2)
    return _Gather.apply(share, rows)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, share: Tensor, rows: int) -> Tensor:
        sizes = [rows // count() + (number < rows % count()) for number in range(count())]
        padded = share.new_zeros(sizes[0], *share.shape[1:])
        padded[: len(share)] = share
        parts = [torch.empty_like(padded) for _ in sizes]
        distributed.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.tensor_split(count())[rank()], None


# ---------------------------------------------------------------------- batch normalisation


def _normalise(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """`nn.BatchNorm2d.forward` of this process's share (b, C, H, W), in training mode with the statistics of the whole batch.

    (torch's SyncBatchNorm refuses the CPU, and one way for all devices is one to test.)
    """
    if not norm.training:
        return type(norm).forward(norm, x)
    white, mean, variance, number = _Whiten.apply(
        x.float() if x.dtype == torch.bfloat16 else x, norm.eps
    )
    with torch.no_grad():
        norm.num_batches_tracked += 1
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * number / (number - 1), norm.momentum)
    return torch.addcmul(norm.bias[:, None, None], white, norm.weight[:, None, None]).to(x.dtype)


class _Whiten(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) with the statistics of all shares; also these, and the number of values in each channel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        own = (
            torch.var_mean(x, (0, 2, 3), correction=0) if len(x) else (x.new_zeros(x.shape[1]),) * 2
        )
        row = torch.cat([*own, x.new_full((1,), x.numel() // x.shape[1])])
        rows = [torch.empty_like(row) for _ in range(count())]
        distributed.all_gather(rows, row)
        variances, means, numbers = torch.stack(rows).split([x.shape[1], x.shape[1], 1], dim=1)
        number = numbers.sum()
        mean = (numbers / number * means).sum(0)
        variance = (numbers / number * (variances + (means - mean).square())).sum(0)
        scale = (variance + eps).rsqrt()
        white = (x - mean[:, None, None]) * scale[:, None, None]
        ctx.save_for_backward(white, scale, number)
        ctx.mark_non_differentiable(mean, variance, number)
        return white, mean, variance, number

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor, None]:
        white, scale, number = ctx.saved_tensors
        sums = torch.stack([gradient.sum((0, 2, 3)), (gradient * white).sum((0, 2, 3))])
        distributed.all_reduce(sums)
        shift, slope = (sums / number)[:, :, None, None]
        return (gradient - shift - white * slope) * scale[:, None, None], None
