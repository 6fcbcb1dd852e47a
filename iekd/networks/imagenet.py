"""ResNet for ImageNet (He et al. 2016, table 1): four stages of basic blocks, as in torchvision.

The depths are 18 (11,689,512 parameters at 1,000 classes), 34 (21,797,672), and 10, which has one
block per stage; none of them is 6n + 2, so the names of CIFAR ResNets keep their meaning.

There are two stems, chosen by name: what a network computes never depends on the image it gets.
`resnet34` has the original one, 7x7 with stride 2 and max pooling: ImageNet weights fit, and a
224 x 224 image is 7 x 7 in the last stage. But an image of 64 pixels is 2 x 2 there, which leaves a
3x3 factor encoder little to look at. So `resnet34_3x3` has one 3x3 convolution with stride 2 and no
pooling, for images of about 32 to 128 pixels: 64 pixels become 4 x 4 at the end, at two and a half
times the cost on a CPU.
"""

from torch import nn

from iekd.networks.resnet import StagedResNet

BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
CHANNELS = (64, 128, 256, 512)


class ImageNetResNet(StagedResNet):
    """A stem and four stages with 64, 128, 256, 512 channels times `width` (floor, at least 4).

    `small` chooses the 3x3 stem. The stem has the channels of the first stage.
    """

    def __init__(
        self, depth: int, width: float, small: bool, num_classes: int, in_channels: int = 3
    ) -> None:
        channels = [max(4, int(c * width)) for c in CHANNELS]
        size, padding = (3, 1) if small else (7, 3)
        conv = nn.Conv2d(in_channels, channels[0], size, 2, padding=padding, bias=False)
        pool = nn.Identity() if small else nn.MaxPool2d(3, 2, padding=1)
        super().__init__(conv, pool, channels, BLOCKS[depth], num_classes)
