"""Pictures for TensorBoard, (H, W, 3) uint8: the few-shot images of an N, the confusion matrices of a cell."""

import copy
import io
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torchvision.utils import make_grid

from experiments.drawing import plain_matplotlib
from grafting.distillation import Distillation
from grafting.teacher import FrozenTeacher

SHOWN_CLASSES, SHOWN_SHOTS = 20, 10
NAMED_CLASSES = 20  # more names than these cannot be read beside a matrix
DRAWN_CLASSES = 1000  # of more, a matrix shows nothing, and takes memory as the square of their number
ZOOM = 2


def decoded(picture: bytes) -> np.ndarray:
    """The pixels of a PNG file."""
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))


def few_shot_images(images: np.ndarray, shots: int, names: Sequence[str]) -> np.ndarray:
    """Few-shot images (shots * classes, 3, side, side) as one picture, a class per row, with the classes' names."""
    by_class = torch.from_numpy(images).unflatten(0, (-1, shots))[:SHOWN_CLASSES, :SHOWN_SHOTS]
    grid = make_grid(by_class.flatten(0, 1), nrow=by_class.shape[1], padding=1, pad_value=255)
    grid = grid.movedim(0, -1).numpy().repeat(ZOOM, 0).repeat(ZOOM, 1)
    font, row = ImageFont.load_default(), ZOOM * (images.shape[-1] + 1)
    shown = _valid(names[: len(by_class)])
    margin = 12 + max(int(font.getlength(name)) for name in shown)
    picture = Image.new("RGB", (margin + grid.shape[1], grid.shape[0]), "white")
    picture.paste(Image.fromarray(grid), (margin, 0))
    pen = ImageDraw.Draw(picture)
    for index, name in enumerate(shown):
        pen.text((margin - 6, (index + 0.5) * row), name, fill="black", font=font, anchor="rm")
    return np.asarray(picture)


def _valid(names: Sequence[str]) -> list[str]:
    """The names without bytes that are not text, which a folder's name may hold."""
    return [name.encode(errors="replace").decode() for name in names]


def confusion(teacher: FrozenTeacher, last: Distillation) -> dict[str, Tensor]:
    """How often the test images of a true class (row) are predicted as each class: (classes, classes) by network.

    last: the last phase of a cell, whose best epoch is the student.
    """
    student = copy.deepcopy(last.scion)
    student.load_state_dict(last.best)
    start, end = last.phase.span
    predictions = {
        "teacher": teacher.predictions(nn.Identity(), len(teacher.blocks)),
        "student": teacher.predictions(nn.Sequential(student, teacher.blocks[end:]), start),
    }
    pairs = {name: teacher.test_labels * teacher.classes + predicted for name, predicted in predictions.items()}
    side = teacher.classes
    return {name: pair.bincount(minlength=side**2).view(side, side).cpu() for name, pair in pairs.items()}


@plain_matplotlib()
def confusion_picture(matrices: Mapping[str, Tensor], names: Sequence[str]) -> np.ndarray:
    """Confusion matrices (`confusion`) side by side, in percent of each true class. names: of the classes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(matrices), 6.2), layout="constrained")
    for axes, (name, counts) in zip(figure.subplots(1, len(matrices), squeeze=False)[0], matrices.items(), strict=True):
        percent = 100 * counts / counts.sum(1, keepdim=True).clamp(min=1)
        axes.imshow(percent.numpy(), cmap="Blues", norm=PowerNorm(0.5, 0, 100))  # a root, to show errors of few percent
        accuracy = 100 * int(counts.trace()) / int(counts.sum())
        axes.set(title=f"{name}, {accuracy:.2f}% correct", xlabel="predicted class", ylabel="true class")
        if len(names) > NAMED_CLASSES:
            continue
        style = {"fontsize": 8, "parse_math": False}  # a class may have $ in its name
        axes.set_xticks(range(len(names)), _valid(names), rotation=90, **style)
        axes.set_yticks(range(len(names)), _valid(names), **style)
        for row, column in percent.round().nonzero().tolist():
            value = float(percent[row, column])
            color = "white" if value > 30 else "black"
            inside = {"ha": "center", "va": "center", "in_layout": False}  # so the layout is found faster
            axes.text(column, row, f"{value:.0f}", fontsize=8, color=color, **inside)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
