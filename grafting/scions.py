"""Scions: student blocks with adapters that fit them into the teacher (paper, section 3; docs/method.md, section 1).

    B0 = [student block 3, s2t0]             replaces the teacher's block 3
    B1 = [t2s0, student block 4, s2t1]       replaces block 4
    B2 = [t2s1, flatten, student classifier] replaces the classifier

    scion     student blocks with their adapters: one of B0, B1, B2, or several of them in sequence
    span      [i, j), the teacher's blocks that a scion replaces
    graft     the teacher with a scion instead of the blocks of a span: `teacher[j:](scion(teacher[:i](x)))`
    tail      the teacher's blocks behind the scion, `teacher[j:]`

The state keys are those of the released files.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.vgg import FIRST_GRAFTED, Architecture, classifier, convolution_block, initialize, student_of


def adapter(channels: int, width: int) -> nn.Conv2d:
    """A 1x1 convolution between the widths of student and teacher: (B, channels, H, W) -> (B, width, H, W)."""
    return nn.Conv2d(channels, width, kernel_size=1)


def scions(teacher: Architecture, classes: int, generator: torch.Generator) -> list[nn.Sequential]:
    """Freshly initialised B0, B1, B2 for a teacher of this architecture."""
    student = student_of(teacher)
    wide = [teacher.width_after(b) for b in (FIRST_GRAFTED, FIRST_GRAFTED + 1)]  # 512, 512
    narrow = [student.width_after(b) for b in (FIRST_GRAFTED, FIRST_GRAFTED + 1)]  # 256, 256
    before = teacher.width_after(FIRST_GRAFTED - 1)
    block3 = convolution_block(before, student.widths[FIRST_GRAFTED])
    block4 = convolution_block(narrow[0], student.widths[FIRST_GRAFTED + 1])
    head = nn.Sequential(nn.Flatten(), classifier(student, classes))
    b0 = nn.Sequential(block3, adapter(narrow[0], wide[0]))  # (B, 256, 4, 4) -> (B, 512, 2, 2)
    b1 = nn.Sequential(adapter(wide[0], narrow[0]), block4, adapter(narrow[1], wide[1]))  # -> (B, 512, 1, 1)
    b2 = nn.Sequential(adapter(wide[1], narrow[1]), head)  # -> (B, classes)
    return [initialize(scion, generator) for scion in (b0, b1, b2)]


def of_span(scions: list[nn.Sequential], span: tuple[int, int]) -> nn.Sequential:
    """Those of [B0, B1, B2] that replace the teacher's blocks [i, j), as one scion."""
    i, j = (block - FIRST_GRAFTED for block in span)
    return nn.Sequential(*scions[i:j])


def graft(teacher: nn.Module, scion: nn.Module, span: tuple[int, int], images: Tensor) -> Tensor:
    """The logits (B, classes) of images (B, 3, 32, 32), with `scion` instead of the teacher's blocks [i, j)."""
    i, j = span
    return teacher[j:](scion(teacher[:i](images)))


def parameters_by_role(scion: nn.Sequential) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters of a scion, a sequence of B0, B1, B2: (student blocks and classifier, 1x1 adapters)."""
    convolutions = [layer for layer in scion.modules() if isinstance(layer, nn.Conv2d)]
    adapters = [p for layer in convolutions if layer.kernel_size == (1, 1) for p in layer.parameters()]
    known = set(map(id, adapters))
    return [p for p in scion.parameters() if id(p) not in known], adapters
