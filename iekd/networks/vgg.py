"""VGG-13 with BN for CIFAR (Simonyan and Zisserman 2015, configuration B), with one linear
classifier.

The form used in the distillation literature (RepDistiller): five stages of two 3x3 convolutions,
max-pooling after the first three only (the feature of a 32 x 32 image is 512 x 4 x 4), global
average pooling. The convolutions keep their biases, which BN makes redundant, because with them the
parameter count is the published one (9,462,180 at 100 classes).
"""

from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu

from iekd.networks.common import Output, finish, he_init

CHANNELS = (64, 128, 256, 512, 512)


class VGG13(nn.Module):
    """Ten convolutions in five stages, and one linear layer."""

    feature_channels = CHANNELS[-1]

    def __init__(self, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        inputs = (in_channels, *CHANNELS)
        self.stages = nn.ModuleList(stage(inputs[k], CHANNELS[k]) for k in range(5))
        self.head = nn.Linear(CHANNELS[-1], num_classes)
        he_init(self)

    @property
    def norms(self) -> dict[str, nn.BatchNorm2d]:
        """The normalisation whose output is 'stage<k>_pre', by stage."""
        return {f"stage{number}": stage[-1] for number, stage in enumerate(self.stages, 1)}

    def forward(self, images: Tensor) -> Output:
        """Images (B, in_channels, H, W), normalised; H and W from 8 (three poolings)."""
        x, features = images, dict[str, Tensor]()
        for number, convolutions in enumerate(self.stages, 1):
            before = convolutions(x)
            after = relu(before)
            features |= {f"stage{number}_pre": before, f"stage{number}": after}
            x = max_pool2d(after, 2) if number <= 3 else after
        return finish(self.head, features)


def stage(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3x3 convolutions with BN, without the last ReLU: the network keeps both sides of it."""
    first = (nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())
    return nn.Sequential(*first, nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs))
