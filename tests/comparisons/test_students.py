"""Students without adapters: their files, and what the methods train in them."""

import pytest
import torch
from small import CLASSES, pictures, short_recipe, small_cell
from torch import nn

from acceleration.feature_cache import CachedTeacher
from comparisons.methods import METHODS
from comparisons.plain_student import fresh_student
from data.views import IDENTITY
from deployment.evaluation import compare
from deployment.networks import candidates
from grafting.distillation import Distillation
from grafting.teacher import FrozenTeacher
from models import checkpoints
from models.vgg import student_of
from utils.errors import BadInput


def test_a_file_holds_the_teachers_blocks_and_the_students_own(teacher, tmp_path):
    blocks = nn.Sequential(*fresh_student(teacher, torch.Generator().manual_seed(0)))
    METHODS["kd"].write(teacher, checkpoints.on_cpu(blocks), tmp_path / "student.pth")
    kind, state = checkpoints.read(tmp_path / "student.pth")
    student = checkpoints.teacher_from_state(state, tmp_path / "student.pth", CLASSES)
    assert kind == "teacher"
    with pytest.raises(BadInput, match="is a student without adapters, not a teacher: its classifier has no BatchNorm"):
        checkpoints.read_teacher(tmp_path / "student.pth", CLASSES)
    assert student.architecture == student_of(teacher.architecture)
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(student(images), blocks(teacher[:3](images)))


@pytest.mark.parametrize("method", ["kd", "fitnets", "fskd", "fskd-images"])
def test_the_file_has_the_accuracy_of_the_cell(teacher, dataset, tmp_path, method):
    images = pictures(6, seed=9)
    frozen = CachedTeacher(teacher, dataset.normalization, dataset.test(), [images], 10**9)
    cell = small_cell(frozen, images, short_recipe(), tmp_path, 2, method=METHODS[method])
    cell.run()
    kind, state = checkpoints.read(cell.planned.students["last"])
    student = checkpoints.teacher_from_state(state, cell.planned.students["last"], CLASSES)
    (figures,) = compare(candidates(kind, state, cell.planned.students["last"], student.eval(), dataset), dataset)
    assert figures.name == "student without adapters"
    curve = cell.curves[cell.current.phase.name]
    assert figures.accuracy == curve.accuracies[curve.epoch]


def test_hints_compare_the_outputs_of_the_block_and_kd_the_logits(teacher, dataset, tmp_path):
    """The loss of each phase's first step, computed again by hand from the fresh networks. All train fast networks."""
    images = pictures(6, seed=9)
    frozen = FrozenTeacher(teacher, dataset.normalization, dataset.test())
    cell = small_cell(frozen, images, short_recipe(), tmp_path, 2, method=METHODS["fitnets"])
    image, view = torch.arange(6), torch.full((6,), IDENTITY)
    features = [frozen.few_shot(images).features(start, image, view) for start in range(7)]
    found, expected, accelerated = {}, {}, []

    def first_step(phase, network):
        outputs = network(features[3])
        theirs = features[6] if phase.name == "kd" else features[phase.span[1]]
        expected[phase.name] = phase.loss(outputs, theirs).item()
        views = frozen.few_shot(images)
        views.fast_network = lambda network, start: accelerated.append(start) or network
        found[phase.name] = Distillation(phase, network, 2).step_for(frozen, views)(image, view).item()

    cell.setting.method.train(cell.setting.recipe, cell.networks, first_step, lambda: None)
    assert list(found) == ["hint 3", "hint 4", "kd"] and found == pytest.approx(expected)
    assert accelerated == [3, 3, 3]
