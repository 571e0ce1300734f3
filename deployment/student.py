"""An exported student, for use from Python.

from deployment.student import load
print(load("student.pth").predict(["cat.jpg"]))
"""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from data.pictures import from_picture
from deployment import formats
from deployment.formats import Header, Network, logits_of
from models.logits import finite

Picture = str | os.PathLike | Image.Image  # a file, or a Pillow image
Prediction = list[tuple[str, float]]  # (class name, probability) of all classes, the most probable first


class Student(nn.Module):
    """An exported student: raw images in, logits out; predicts classes of pictures.

    network: of a .pth file a module, which can be moved to another device; of the other formats a function on the CPU.
    """

    def __init__(self, network: Network, header: Header):
        super().__init__()
        self.network = network
        self.header = header
        self.class_names = tuple(header["class_names"])

    def forward(self, images: Tensor) -> Tensor:
        """images: (B, 3, S, S) uint8, RGB, S pixels as in training -> logits (B, classes).

        Their softmax is matched to the teacher's confidence. Raises ValueError for other images, such as float ones
        between 0 and 1.
        """
        size = self.header["image_size"]
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1:] != (3, size, size):
            raise ValueError(
                f"images: (B, 3, {size}, {size}) of torch.uint8 expected, not {tuple(images.shape)} of"
                f" {images.dtype}; predict() takes pictures of any size"
            )
        return self.network(images)

    def predict(self, pictures: Iterable[Picture]) -> list[Prediction]:
        """The classes of pictures of any size.

        They are turned upright, converted to RGB, resized and cropped as in training (data/pictures.py). Raises
        BadInput for a picture that cannot be read, TypeError for anything else, such as an array, and LogitsNotFinite.
        """
        if isinstance(pictures, Picture):
            raise TypeError("predict() takes a list of pictures; put the picture into a list")
        images = []  # (3, S, S) uint8
        for picture in pictures:
            if not isinstance(picture, Picture):
                kind = type(picture).__name__
                raise TypeError(f"{kind}: neither a file nor a Pillow image; PIL.Image.fromarray(array) makes one")
            name = "a picture" if isinstance(picture, Image.Image) else picture
            images.append(from_picture(picture, name, self.header["image_size"]))
        if not images:
            return []
        device = next((p.device for p in self.parameters()), torch.device("cpu"))
        probabilities = finite(logits_of(self, torch.from_numpy(np.stack(images)), device)).softmax(1)
        rows = [zip(self.class_names, row, strict=True) for row in probabilities.tolist()]
        return [sorted(pairs, key=lambda pair: pair[1], reverse=True) for pairs in rows]


def load(path: str | os.PathLike[str]) -> Student:
    """The student in an exported file (.pth, .pt2 or .onnx), on the CPU and in evaluation mode.

    Raises BadInput for any other file.
    """
    return Student(*formats.read(Path(path))).eval()
