"""Block-wise VGG (paper, section 3; docs/method.md, section 1).

Blocks 0 to 4 are convolutions up to and including a max-pool; block 5 is the classifier with the flatten
before it. There is no BatchNorm in the convolution blocks and no ReLU or dropout in the classifier.
"""

from torch import Tensor, nn

from models.architectures import Architecture


def convolution_block(channels: int, widths: tuple[int, ...]) -> nn.Sequential:
    """3x3 convolutions with ReLU, then a max-pool: (B, channels, H, W) -> (B, widths[-1], H/2, W/2)."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
        channels = width
    return nn.Sequential(*layers, nn.MaxPool2d(2))


class BlockwiseVGG(nn.Module):
    """A VGG with the state keys of the released files: `features.<block>.<position>.*`, `classifier.<position>.*`."""

    def __init__(self, architecture: Architecture, classes: int):
        super().__init__()
        inputs = (3, *(block[-1] for block in architecture.widths[:-1]))
        self.architecture = architecture
        self.classes = classes
        self.features = nn.Sequential(
            *(convolution_block(c, w) for c, w in zip(inputs, architecture.widths, strict=True))
        )
        width, hidden = architecture.width_after(-1), architecture.hidden
        between = [nn.BatchNorm1d(hidden)] if architecture.batchnorm else []  # of the student: nothing
        self.classifier = nn.Sequential(nn.Linear(width, hidden), *between, nn.Linear(hidden, classes))

    def forward(self, images: Tensor) -> Tensor:
        """images: (B, 3, 32, 32) normalised -> logits (B, classes)."""
        return cut(self)(images)


def convolutions(blocks: nn.Module) -> list[nn.Conv2d]:
    """Of a block or several, front to back."""
    return [layer for layer in blocks.modules() if isinstance(layer, nn.Conv2d)]


def linear_layers(classifier: nn.Sequential) -> list[nn.Linear]:
    """The classifier without the BatchNorm of a teacher's, which its first linear layer takes in."""
    if len(classifier) == 2:
        return list(classifier)
    return [nn.utils.fusion.fuse_linear_bn_eval(classifier[0], classifier[1]), classifier[2]]


def cut(network: BlockwiseVGG) -> nn.Sequential:
    """The network's six blocks. They share its parameters; slices of the sequence do too."""
    return nn.Sequential(*network.features, nn.Sequential(nn.Flatten(), network.classifier))
