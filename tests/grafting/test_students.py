"""Students without adapters: their logits, their keys, torchvision's own classes."""

from functools import partial

import pytest
import torch
from small import CLASSES, frozen_teacher, resnet_teacher
from torch import nn
from torchvision import models

from comparisons.methods import METHODS
from grafting import students
from grafting.scions import adapters_of, scions
from grafting.teacher import FrozenTeacher
from models.networks import NETWORKS, Networks, frozen
from utils.errors import BadInput
from utils.precision import arithmetic


def trained_scions(teacher: FrozenTeacher) -> nn.Sequential:
    """Scions whose BatchNorm has statistics of its own."""
    made = nn.Sequential(*scions(teacher, torch.Generator().manual_seed(2)))
    students.graft_of(teacher, made.train())(torch.randn(16, 3, 32, 32))
    frozen(teacher.network)
    return made.eval()


def plain(teacher: FrozenTeacher, made: nn.Sequential) -> nn.Sequential | None:
    return students.without_adapters(teacher.networks, teacher.blocks, made)


@pytest.mark.parametrize("name, grafted, adapters, own_class", [
    ("resnet34-resnet18", (), 0, models.resnet18),
    ("resnet50-resnet18", (), 7, models.resnet18),
    ("resnet34-resnet18", (3, 3), 0, partial(models.ResNet, models.resnet.BasicBlock, [3, 4, 2, 3])),
    ("resnet50-resnet18", (3, 3), 2, None),
])  # fmt: skip
def test_a_students_file_is_its_function_in_torchvisions_own_class(tmp_path, name, grafted, adapters, own_class):
    teacher, path = resnet_teacher(name, *grafted), tmp_path / "student.pth"
    made = trained_scions(teacher)
    assert len(adapters_of(made)) == adapters
    students.write(teacher, made, path)
    state, images = torch.load(path, weights_only=True), torch.randn(4, 3, 32, 32)
    expected = students.graft_of(teacher, made)(images)
    near = {"rtol": 1e-4, "atol": 1e-4 * expected.abs().max().item()}
    blocks = students.empty_student(teacher.networks, CLASSES, 32)
    again = students.load_plain(teacher.networks, blocks, state, path, CLASSES)
    assert torch.allclose(again(images), expected, **near)
    if own_class:
        network = own_class(num_classes=CLASSES)
        network.load_state_dict(state, strict=True)
        assert torch.allclose(network.eval()(images), expected, **near)


def test_where_a_map_cannot_be_absorbed_the_file_keeps_the_adapters(tmp_path):
    for teacher in (frozen_teacher(), resnet_teacher("resnet50-resnet18", 1, 1)):
        networks = teacher.networks
        if not networks.is_vgg:  # layer2 of a ResNet50 can; one that never can stands for a user's without `absorb`
            teacher.networks = Networks(**{**vars(networks), "absorb": lambda block, matrix: False})
        made = trained_scions(teacher)
        assert plain(teacher, made) is None
        students.write(teacher, made, tmp_path / "student.pth")
        nn.Sequential(*scions(teacher, torch.Generator())).load_state_dict(torch.load(tmp_path / "student.pth"))


def test_a_student_is_compared_in_float32_whatever_the_runs_precision(tmp_path):
    teacher = resnet_teacher("resnet50-resnet18")
    with arithmetic("bfloat16", teacher.device):
        students.write(teacher, trained_scions(teacher), tmp_path / "student.pth")


def test_a_plain_student_that_is_another_function_is_not_written(tmp_path):
    teacher = resnet_teacher("resnet50-resnet18")
    wrong = lambda block, matrix: NETWORKS["resnet50-resnet18"].absorb(block, 2 * matrix)  # noqa: E731
    teacher.networks = Networks(**{**vars(teacher.networks), "absorb": wrong})
    with pytest.raises(BadInput, match="absorb\\(\\) is not exact: without adapters, the student's logits differ by"):
        students.write(teacher, trained_scions(teacher), tmp_path / "student.pth")
    assert not list(tmp_path.iterdir())


def test_another_networks_state_does_not_fit(tmp_path):
    networks = NETWORKS["resnet34-resnet18"]
    blocks = students.empty_student(networks, CLASSES, 32)
    state = networks.teacher(CLASSES).state_dict()
    with pytest.raises(BadInput, match=r"student.pth: layer1.2.bn1.bias is not expected"):
        students.load_plain(networks, blocks, state, tmp_path / "student.pth", CLASSES)


def test_the_teacher_never_changes_while_scions_with_batchnorm_train():
    teacher = resnet_teacher("resnet34-resnet18")
    before = {key: value.clone() for key, value in teacher.network.state_dict().items()}
    trained_scions(teacher)
    assert all(torch.equal(value, before[key]) for key, value in teacher.network.state_dict().items())
    assert not any(module.training for module in teacher.network.modules())


def test_a_student_without_adapters_must_fit_between_the_teachers_blocks():
    with pytest.raises(BadInput, match=r"--method kd: in front of block 5 the teacher has \(2048, 1, 1\), the student"):
        METHODS["kd"].fresh(resnet_teacher("resnet50-resnet18"), torch.Generator())
