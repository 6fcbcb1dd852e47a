"""ReLU and residual sum computed inside the convolution before them, in frozen networks on a CPU.

oneDNN applies both while a convolution's result is still in the cache; as separate operators, each
is a pass over memory. The result differs at most by rounding.
"""

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

RELU = (F.relu, torch.relu)
# torch.compile's CPU backend calls this as well. Without it (a build without oneDNN, another name
# in another version) nothing is fused.
AVAILABLE = torch.backends.mkldnn.is_available() and hasattr(
    torch.ops.mkldnn, "_convolution_pointwise"
)


class FusedConv(nn.Module):
    """A frozen float32 convolution on the CPU, then + `other` if given, then ReLU if `relu`."""

    def __init__(self, convolution: nn.Conv2d, relu: bool):
        super().__init__()
        self.convolution, self.relu = convolution, "relu" if relu else "none"
        # the weight in oneDNN's preferred layout, made at the first call
        self.packed: Tensor | None = None

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        c = self.convolution
        geometry = c.padding, c.stride, c.dilation, c.groups
        if self.packed is None:
            self.packed = torch.ops.mkldnn._reorder_convolution_weight(c.weight, *geometry, x.shape)
        if other is None:
            return torch.ops.mkldnn._convolution_pointwise(
                x, self.packed, c.bias, *geometry, self.relu, [], ""
            )
        after = "relu" if self.relu == "relu" else None
        return torch.ops.mkldnn._convolution_pointwise.binary(
            x, other, self.packed, c.bias, *geometry, "add", 1.0, after, [], ""
        )


def fuse(network: nn.Module) -> nn.Module:
    """A copy of a frozen network for a CPU, with convolutions fused with what follows; features and
    logits keep their names.

    A sum or a ReLU is fused if nothing else reads its input. The network must be traceable by
    torch.fx. A network that is not in float32 is left as it is, and so is any without oneDNN.
    """
    if not AVAILABLE or next(network.parameters()).dtype != torch.float32:
        return network
    traced = fx.symbolic_trace(network)
    for node, module in _modules(traced):
        if isinstance(module, nn.Identity):  # what folding left of batch normalisation
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)
    for node, module in _modules(traced):
        if type(module) is nn.Conv2d:
            _fuse_one(traced, node, module)
    traced.graph.lint()
    traced.recompile()
    return traced.eval()  # the new modules too


def _modules(traced: fx.GraphModule) -> Iterator[tuple[fx.Node, nn.Module]]:
    """The calls of modules, each with its module as it is at that point."""
    for node in list(traced.graph.nodes):
        if node.op == "call_module":
            yield node, traced.get_submodule(node.target)


def _fuse_one(traced: fx.GraphModule, node: fx.Node, convolution: nn.Conv2d) -> None:
    """Replace a convolution and what follows it by one `FusedConv`, in the place of the last."""
    last: Any = node
    inputs: tuple = (node.args[0],)
    after = _only_user(last)
    if after is not None and after.target is operator.add and after.args[0] is not after.args[1]:
        other = after.args[1] if after.args[0] is last else after.args[0]
        last, inputs = after, (*inputs, other)
        after = _only_user(last)
    relu = after is not None and after.target in RELU
    last = after if relu else last
    if last is node:
        return
    traced.set_submodule(node.target, FusedConv(convolution, relu))
    with traced.graph.inserting_before(last):
        last.replace_all_uses_with(traced.graph.call_module(node.target, inputs))
    sums: list = [last.args[0]] if relu and len(inputs) == 2 else []
    for gone in dict.fromkeys((last, *sums, node)):
        traced.graph.erase_node(gone)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None
