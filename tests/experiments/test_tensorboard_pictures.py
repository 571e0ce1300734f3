import numpy as np
import pytest
import torch
from small import frozen_teacher
from torch import nn

from experiments import pictures
from grafting.distillation import Distillation
from grafting.recipes import CIFAR10
from grafting.scions import scions


def test_few_shot_images_are_a_class_per_row_behind_its_name():
    images = np.zeros((6, 3, 32, 32), np.uint8)
    images[2:4] = 200  # the second of three classes at two shots
    picture = pictures.few_shot_images(images, 2, ("a", "bee", "c"))
    height, width, _ = picture.shape
    margin = width - 2 * (2 * 33 + 1)
    assert height == 2 * (3 * 33 + 1) and margin > 12
    grid = picture[:, margin:]
    assert grid[68:130, 2:66].min() == 200 and grid[2:66, 2:66].max() == 0
    rows = [picture[row * 66 : row * 66 + 66, :margin] for row in range(3)]
    assert all((row < 128).any() for row in rows), "a row without its name"


def test_not_all_of_many_images():
    picture = pictures.few_shot_images(np.zeros((30 * 12, 3, 32, 32), np.uint8), 12, [str(i) for i in range(30)])
    assert picture.shape[0] == 2 * (20 * 33 + 1)


def test_confusion_counts_true_by_predicted_of_the_best_epoch():
    teacher = frozen_teacher()
    last = Distillation(CIFAR10.phases[-1], nn.Sequential(*scions(teacher, torch.Generator().manual_seed(0))), 1)
    last.best = {name: torch.zeros_like(value) for name, value in last.scion.state_dict().items()}
    last.best[list(last.best)[-1]] = torch.tensor([0.0, 1.0, 0.0])  # the bias of the last layer
    before = {name: value.clone() for name, value in last.scion.state_dict().items()}
    matrices = pictures.confusion(teacher, last)
    predicted = teacher.predictions(nn.Identity(), len(teacher.blocks))
    for true in range(3):
        for guess in range(3):
            here = (teacher.test_labels == true) & (predicted == guess)
            assert matrices["teacher"][true, guess] == here.sum()
    assert matrices["student"].tolist() == [[0, 7, 0], [0, 7, 0], [0, 6, 0]]  # by that bias alone
    assert all(torch.equal(before[name], value) for name, value in last.scion.state_dict().items())


@pytest.mark.usefixtures("real_pictures")
@pytest.mark.parametrize("classes", [3, 100])
def test_confusion_picture(classes):
    counts = torch.eye(classes, dtype=torch.long) * 9
    counts[0, 1] = 1
    picture = pictures.confusion_picture({"teacher": counts, "student": counts}, [f"c{i}" for i in range(classes)])
    assert picture.shape[2] == 3 and picture.dtype == np.uint8 and len(np.unique(picture)) > 10
    for edge in (picture[:2], picture[-2:], picture[:, :2], picture[:, -2:]):
        assert (edge == 255).all(), "something is cut off"


@pytest.mark.usefixtures("real_pictures")
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["猫", "a$b$\\frac$", "\udcff"])
def test_any_folder_may_be_a_class(name):
    """Without a warning: letters that the font does not have, as if it were a formula, a byte that is not text."""
    pictures.confusion_picture({"teacher": torch.eye(2, dtype=torch.long)}, [name, "b"])
    pictures.few_shot_images(np.zeros((2, 3, 32, 32), np.uint8), 1, [name, "b"])
