"""What every network shares: the form of its output and its initialisation."""

from typing import NamedTuple

from torch import Tensor, nn


class Output(NamedTuple):
    """Result of a forward pass.

    `logits` is (B, classes). `features` maps names to tensors, in the order of the network: for
    every stage k 'stage<k>_pre' and 'stage<k>' (B, C, H, W), before and after its last ReLU; then
    'pooled' (B, C), the classifier's input. A teacher adds its 'factor' (B, K, H, W). A detector's
    output differs: see `networks.ssd`.
    """

    logits: Tensor
    features: dict[str, Tensor]

    @property
    def feature(self) -> Tensor:
        """The feature that is distilled (B, feature_channels, H, W): last stage, after ReLU."""
        return self.features[[name for name in self.features if name.startswith("stage")][-1]]


def finish(head: nn.Linear, features: dict[str, Tensor]) -> Output:
    """Global average pooling of the last feature, and the classifier. Any image size works."""
    # A mean, not adaptive_avg_pool2d: the same value, and its CUDA gradient is deterministic.
    pooled = next(reversed(features.values())).mean((2, 3))
    return Output(head(pooled), {**features, "pooled": pooled})


def thin(x: Tensor, stride: int) -> Tensor:
    """Every `stride`-th pixel of (B, C, H, W): what a 1x1 convolution of that stride reads.

    No network has a 1x1 convolution with a stride: on processors without AVX-512, PyTorch 2.14's
    gradient of one with fewer than 8 channels writes outside its memory (the process crashes, or
    worse, does not).
    """
    return x if stride == 1 else x[:, :, ::stride, ::stride]


def he_init(network: nn.Module) -> None:
    """Weights of k x k convolutions ~ N(0, 2 / (k k C_out)), biases 0 (He et al. 2015, fan-out)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
