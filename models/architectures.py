"""The networks by name, as data: block-wise VGGs and torchvision's ResNets. This loads without torch.

models/vgg.py and torchvision build them; models/networks.py says how they are cut.
"""

from dataclasses import dataclass, replace

CLASSIFIER = 5  # the last block
FIRST_GRAFTED, LAST_GRAFTED = 3, CLASSIFIER  # the student uses the teacher's blocks 0 to 2
STUDENT_WIDTH = 0.5  # the paper's: the share of the teacher's channels in the student's convolution blocks


@dataclass(frozen=True)
class Architecture:
    """What distinguishes one block-wise VGG from another.

    widths: output channels of every convolution, block by block.
    hidden: width of the classifier's first linear layer.
    batchnorm: whether a BatchNorm1d is between the classifier's two linear layers (teachers only).
    """

    widths: tuple[tuple[int, ...], ...]
    hidden: int = 512
    batchnorm: bool = True

    def width_after(self, block: int) -> int:
        return self.widths[block][-1]


def _vgg(*convolutions: int, widths: tuple[int, ...] = (64, 128, 256, 512, 512), hidden: int = 512) -> Architecture:
    return Architecture(tuple((w,) * n for w, n in zip(widths, convolutions, strict=True)), hidden)


ARCHITECTURES = {
    "vgg11": _vgg(1, 1, 2, 2, 2),
    "vgg13": _vgg(2, 2, 2, 2, 2),
    "vgg16": _vgg(2, 2, 3, 3, 3),
    "vgg19": _vgg(2, 2, 4, 4, 4),
    "vgg11-small": _vgg(1, 1, 2, 2, 2, widths=(16, 32, 64, 128, 128), hidden=128),
}


def student_of(
    teacher: Architecture, share: float = STUDENT_WIDTH, grafted: range = range(FIRST_GRAFTED, LAST_GRAFTED + 1)
) -> Architecture:
    """The student of a teacher: grafted blocks at a share of the width, no BatchNorm in the classifier.

    A share may leave no channel; the caller refuses that.
    """
    widths = (
        tuple(int(width * share) for width in block) if number in grafted else block
        for number, block in enumerate(teacher.widths)
    )
    return replace(teacher, widths=tuple(widths), batchnorm=teacher.batchnorm and CLASSIFIER not in grafted)


TRAINABLE = tuple(ARCHITECTURES)  # teachers; the student below is only grafted
ARCHITECTURES["vgg16-graft"] = student_of(ARCHITECTURES["vgg16"])

# teacher and student, by torchvision's names; resnet10 has one residual block in each stage
RESNETS = {
    "resnet34-resnet18": ("resnet34", "resnet18"),
    "resnet50-resnet18": ("resnet50", "resnet18"),
    "resnet18-resnet10": ("resnet18", "resnet10"),
}
NETWORK_NAMES = (*TRAINABLE, *RESNETS)
