"""CIFAR ResNet (He et al. 2016, section 4.2) with option-B shortcuts: 1x1 conv + BN, where the
shape changes.

ResNet-20 has 272,474 parameters and ResNet-56 855,770 at 10 classes, as in the IE-KD authors' code.
(Option A, without parameters in the shortcuts, has 2,752 fewer: the 0.27 M and 0.85 M of the
original paper hold for both.)

ResNet-8x4 and ResNet-32x4 are those of RepDistiller (Tian et al. 2020, models/resnet.py): the
stages are four times as wide, the stem twice; 1,233,540 and 7,433,860 parameters at 100 classes.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import relu

from iekd.networks.common import Output, finish, he_init, thin


class Projection(nn.Sequential):
    """The option-B shortcut: a 1x1 convolution of every `stride`-th pixel, and BN."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(thin(x, self.stride))


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut. Returns the sum *before* the ReLU, a feature."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        same = (inputs, stride) == (outputs, 1)
        self.shortcut = nn.Identity() if same else Projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm2(self.conv2(relu(self.norm1(self.conv1(x))))) + self.shortcut(x)


class StagedResNet(nn.Module):
    """A stem (`conv`, BN, ReLU, `pool`), stages of basic blocks, and a linear classifier; used here
    and for ImageNet.

    All stages but the first halve height and width.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        pool: nn.Module,
        channels: Sequence[int],
        blocks: Sequence[int],
        num_classes: int,
    ) -> None:
        super().__init__()
        self.feature_channels = channels[-1]
        self.conv = conv
        self.norm = nn.BatchNorm2d(conv.out_channels)
        self.pool = pool
        inputs = [conv.out_channels, *channels]
        self.stages = nn.ModuleList(
            stage(inputs[k], channels[k], 2 if k else 1, count) for k, count in enumerate(blocks)
        )
        self.head = nn.Linear(channels[-1], num_classes)
        he_init(self)

    @property
    def norms(self) -> dict[str, nn.BatchNorm2d]:
        """The normalisation whose output, plus the shortcut, is 'stage<k>_pre', by stage."""
        return {f"stage{number}": blocks[-1].norm2 for number, blocks in enumerate(self.stages, 1)}

    def forward(self, images: Tensor) -> Output:
        """Images (B, in_channels, H, W), normalised; H and W from 8."""
        return finish(self.head, self.look(images, len(self.stages)))

    def look(self, images: Tensor, stages: int) -> dict[str, Tensor]:
        """The features of the first stages."""
        x = self.pool(relu(self.norm(self.conv(images))))
        features = dict[str, Tensor]()
        for number in range(1, stages + 1):
            features |= self.run_stage(number, x)
            x = features[f"stage{number}"]
        return features

    def run_stage(self, number: int, x: Tensor) -> dict[str, Tensor]:
        """The features of a stage (from 1), given the output of the one before it."""
        for block in self.stages[number - 1]:
            before = block(x)
            x = relu(before)
        return {f"stage{number}_pre": before, f"stage{number}": x}


class ResNet(StagedResNet):
    """Depth 6n + 2: stem and three stages of n blocks with 16, 32, 64 channels times `width`
    (floor, at least 4).

    The stem has the channels of the first stage, but never more than 32.
    """

    def __init__(self, depth: int, width: float, num_classes: int, in_channels: int = 3) -> None:
        channels = [max(4, int(c * width)) for c in (16, 32, 64)]
        conv = nn.Conv2d(in_channels, min(channels[0], 32), 3, padding=1, bias=False)
        blocks = [(depth - 2) // 6] * 3
        super().__init__(conv, nn.Identity(), channels, blocks, num_classes)


def stage(inputs: int, outputs: int, stride: int, blocks: int, kind: type = Block) -> nn.ModuleList:
    """`blocks` blocks, of which the first changes channels and size."""
    later = [kind(outputs, outputs, 1) for _ in range(blocks - 1)]
    return nn.ModuleList([kind(inputs, outputs, stride), *later])
