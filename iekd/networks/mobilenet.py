"""MobileNetV2 for CIFAR (Sandler et al. 2018, table 2), in the form used in the distillation
literature (RepDistiller).

That form has fewer strides than the original, because the images are small: a 32 x 32 image is 16 x
16 after the stem and 2 x 2 at the end. Half width has 812,836 parameters at 100 classes, the 0.81 M
of that literature.

A block ends in a linear layer, without ReLU. The next layer reads ReLU(BN(conv)), its own
expansion; as in the other networks, that is the feature, 'stage<k>_pre' and 'stage<k>'. The last
one is the 1280-channel layer before pooling. RepDistiller returns the linear outputs, to which an
attention map or a margin ReLU does not apply; for this network, the authors of AB choose as we do.
"""

from torch import Tensor, nn
from torch.nn.functional import relu

from iekd.networks.common import Output, finish, he_init

# Expansion, channels at full width, blocks, stride of the first block.
BLOCKS = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
LAST = 1280  # channels of the last layer, at any width up to 1


class Block(nn.Module):
    """Inverted residual: 1x1 expansion, 3x3 depthwise, linear 1x1, + input if shapes match."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expand = nn.Sequential(nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner))
        self.depthwise = nn.Sequential(
            nn.Conv2d(inner, inner, 3, stride, padding=1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.same = (inputs, stride) == (outputs, 1)

    def forward(self, x: Tensor, active: Tensor) -> Tensor:
        """`x` the input, `active` = ReLU(expand(x))."""
        result = self.depthwise(active)
        return x + result if self.same else result


class MobileNetV2(nn.Module):
    """Stem, 17 blocks and a last 1x1 convolution; all others have `width` times their channels."""

    feature_channels = LAST

    def __init__(self, width: float, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        inputs = int(32 * width)
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, inputs, 3, 2, padding=1, bias=False),
            nn.BatchNorm2d(inputs),
            nn.ReLU(),
        )
        self.blocks = nn.ModuleList()
        # the blocks at whose input a stage ends: those with a stride
        self.ends: list[int] = []
        for expansion, channels, count, stride in BLOCKS:
            if stride == 2:
                self.ends.append(len(self.blocks))
            outputs = int(channels * width)
            for k in range(count):
                self.blocks.append(Block(inputs, outputs, 1 if k else stride, expansion))
                inputs = outputs
        self.last = nn.Sequential(nn.Conv2d(inputs, LAST, 1, bias=False), nn.BatchNorm2d(LAST))
        self.head = nn.Linear(LAST, num_classes)
        he_init(self)

    @property
    def norms(self) -> dict[str, nn.BatchNorm2d]:
        """The normalisation whose output is 'stage<k>_pre', by stage."""
        layers = [*(self.blocks[i].expand for i in self.ends), self.last]
        return {f"stage{number}": layer[-1] for number, layer in enumerate(layers, 1)}

    def forward(self, images: Tensor) -> Output:
        """Images (B, in_channels, H, W), normalised; H and W from 8."""
        x, features = self.stem(images), dict[str, Tensor]()
        for k, block in enumerate(self.blocks):
            before = block.expand(x)
            active = relu(before)
            if k in self.ends:
                number = len(features) // 2 + 1
                features |= {f"stage{number}_pre": before, f"stage{number}": active}
            x = block(x, active)
        before, number = self.last(x), len(self.ends) + 1
        features |= {f"stage{number}_pre": before, f"stage{number}": relu(before)}
        return finish(self.head, features)
