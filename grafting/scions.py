"""Scions: student blocks with adapters that fit them into the teacher (paper, section 3; docs/method.md, section 1).

Of a VGG, whose blocks 3 to 5 are replaced:

    B0 = [student block 3, s2t0]             replaces the teacher's block 3
    B1 = [t2s0, student block 4, s2t1]       replaces block 4
    B2 = [t2s1, flatten, student classifier] replaces the classifier

    scion     a student block with its adapters, or several of them in sequence
    adapter   a 1x1 convolution, on a side where the widths of teacher and student differ: s2t behind a student block,
              t2s in front of one; without bias where it can be put into the next block (grafting/students.py)
    span      [i, j), the teacher's blocks that a scion replaces
    graft     the teacher with a scion instead of the blocks of a span: `teacher[j:](scion(teacher[:i](x)))`
    tail      the teacher's blocks behind the scion, `teacher[j:]`

A VGG's scions have the state keys of the released files.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from grafting.teacher import FrozenTeacher
from models.networks import Networks, frozen, initialize, output_shapes, seeded


class Adapter(nn.Conv2d):
    """A 1x1 convolution between the widths of student and teacher: (B, channels, H, W) -> (B, width, H, W)."""

    def __init__(self, channels: int, width: int, bias: bool = True):
        super().__init__(channels, width, kernel_size=1, bias=bias)


def scions(teacher: FrozenTeacher, generator: torch.Generator) -> list[nn.Sequential]:
    """Freshly initialised B0, B1, ..., on the CPU: one for each block that the teacher's networks replace."""
    with seeded(generator):
        made = scions_between(teacher.networks, teacher.shapes, teacher.image_size)
    return [initialize(scion, generator) for scion in made]


def scions_between(networks: Networks, shapes: Sequence[tuple[int, ...]], image_size: int) -> list[nn.Sequential]:
    """B0, B1, ... as their layers are made. shapes: of the teacher's features in front of each block, logits last."""
    (classes,) = shapes[-1]
    student = networks.cut(networks.student(classes))
    ours = output_shapes(frozen(student), image_size)
    made, bias = [], networks.absorb is None
    for block in networks.grafted:
        (wide_in, *_), (wide_out, *_) = shapes[block], shapes[block + 1]
        (narrow_in, *_), (narrow_out, *_) = ours[block], ours[block + 1]
        t2s = [Adapter(wide_in, narrow_in, bias)] if wide_in != narrow_in else []
        s2t = [Adapter(narrow_out, wide_out, bias)] if narrow_out != wide_out else []
        made.append(nn.Sequential(*t2s, student[block], *s2t).requires_grad_(True))
    return made


def adapters_of(scion: nn.Module) -> list[Adapter]:
    """The adapters within a scion, from front to back."""
    return [layer for layer in scion.modules() if isinstance(layer, Adapter)]


def own_block(scion: nn.Sequential) -> nn.Module:
    """The student's block between its adapters."""
    (own,) = (layer for layer in scion if not isinstance(layer, Adapter))
    return own


def graft(teacher: nn.Sequential, scion: nn.Module, span: tuple[int, int], images: Tensor) -> Tensor:
    """The logits (B, classes) of normalised images, with `scion` instead of the teacher's blocks [i, j)."""
    i, j = span
    return teacher[j:](scion(teacher[:i](images)))


def parameters_by_role(scion: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters of a scion: (of student blocks, of adapters)."""
    adapters = [parameter for layer in adapters_of(scion) for parameter in layer.parameters()]
    known = set(map(id, adapters))
    return [p for p in scion.parameters() if id(p) not in known], adapters
