"""Mixed views: what a student that begins from its VGG teacher is fitted and trained on (grafting/start.py).

Ten images in 162 views each say little about all that the teacher's channels can do. A mixed view is a view of an image
with a square of another view in it (CutMix, Yun et al., ICCV 2019). It needs no label: the teacher says what it is.
"""

import numpy as np
import torch
from torch import Tensor

from grafting.inputs import Inputs
from grafting.teacher import FrozenTeacher
from utils.seeds import generator

COUNT = 16_200  # mixed views of all images together
AUGMENTATION = "mixed views"  # in settings; another COUNT needs another name


class MixedInputs(Inputs):
    """Few-shot images in as many mixed views each as make COUNT, but at least one; they are drawn once.

    seed_key: what the draws depend on. The share of the square in the picture is uniform in [0, 1).
    """

    def __init__(self, teacher: FrozenTeacher, images: np.ndarray, *seed_key: int | str):
        super().__init__(teacher, images)
        self.views = max(1, COUNT // len(images))
        random, count, size = generator(*seed_key, AUGMENTATION), len(images) * self.views, teacher.views.size
        other = random.integers(len(images), size=count)
        view, other_view = random.integers(teacher.views.count, size=(2, count))
        side = (size * np.sqrt(random.random(count))).astype(np.int64)
        top, left = (random.random((2, count)) * (size - side + 1)).astype(np.int64)
        drawn = np.stack([view, other, other_view, top, left, side])
        self.drawn = torch.from_numpy(drawn).to(teacher.device)

    def shown(self, image: Tensor, view: Tensor) -> Tensor:
        own_view, other, other_view, top, left, side = self.drawn[:, image * self.views + view]
        crop, pixels = self.teacher.views.crop, torch.arange(self.teacher.views.size, device=image.device)
        rows, columns = ((pixels >= start[:, None]) & (pixels < (start + side)[:, None]) for start in (top, left))
        is_inside = rows[:, None, :, None] & columns[:, None, None, :]
        return torch.where(is_inside, crop(self.padded, other, other_view), crop(self.padded, image, own_view))
