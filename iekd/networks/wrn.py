"""Wide residual network WRN-d-k (Zagoruyko and Komodakis 2016): pre-activation blocks, no dropout.

BN and ReLU come before each convolution, so the end of a stage is a bare sum. The next layer reads
ReLU(BN(sum)): 'stage1_pre' and 'stage2_pre' are the BN at the input of the next stage, 'stage3_pre'
is the final BN.
"""

from torch import Tensor, nn
from torch.nn.functional import relu

from iekd.networks.common import Output, finish, he_init, thin
from iekd.networks.resnet import stage


class Block(nn.Module):
    """BN, ReLU, 3x3, BN, ReLU, 3x3 and a shortcut: the identity, or a 1x1 convolution of the
    *activated* input.

    The network calls `norm1` and keeps its output as a feature (a second call would update the
    statistics twice).
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        same = (inputs, stride) == (outputs, 1)
        self.stride = stride
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor, active: Tensor) -> Tensor:
        """`x` the sum so far, `active` = ReLU(norm1(x))."""
        residual = self.conv2(relu(self.norm2(self.conv1(active))))
        return residual + (x if self.shortcut is None else self.shortcut(thin(active, self.stride)))


class WideResNet(nn.Module):
    """Depth 6n + 4: a stem of 16 channels, three stages of n blocks with 16k, 32k, 64k channels."""

    def __init__(self, depth: int, factor: int, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        channels = [16, 16 * factor, 32 * factor, 64 * factor]
        self.feature_channels = channels[-1]
        self.conv = nn.Conv2d(in_channels, channels[0], 3, padding=1, bias=False)
        self.stages = nn.ModuleList(
            stage(channels[k], channels[k + 1], 2 if k else 1, blocks, Block) for k in range(3)
        )
        self.norm = nn.BatchNorm2d(channels[-1])
        self.head = nn.Linear(channels[-1], num_classes)
        he_init(self)

    @property
    def norms(self) -> dict[str, nn.BatchNorm2d]:
        """The normalisation whose output is 'stage<k>_pre', by stage."""
        first = {"stage1": self.stages[1][0].norm1, "stage2": self.stages[2][0].norm1}
        return {**first, "stage3": self.norm}

    def forward(self, images: Tensor) -> Output:
        """Images (B, in_channels, H, W), normalised; H and W from 8."""
        x, features = self.conv(images), dict[str, Tensor]()
        for number, blocks in enumerate(self.stages):
            for k, block in enumerate(blocks):
                before = block.norm1(x)
                active = relu(before)
                if number and k == 0:
                    features |= {f"stage{number}_pre": before, f"stage{number}": active}
                x = block(x, active)
        before = self.norm(x)
        return finish(self.head, {**features, "stage3_pre": before, "stage3": relu(before)})
