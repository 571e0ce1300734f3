"""train_fskd.py with other networks than VGGs, from the teacher's training to the exported student."""

import json
import shlex
from pathlib import Path

import pytest
import torch

import train_fskd
from experiments import arguments, sweep
from models import networks, records

NETWORKS = """
import torch
from torch import nn

GRAFTED, IMAGE_SIZE = (1, 2), 32


class Small(nn.Module):
    def __init__(self, classes, widths):
        super().__init__()
        sizes = zip((4, *widths), widths)
        self.stem = nn.Conv2d(3, 4, 3, 4, padding=1)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, w, 3, padding=1), nn.BatchNorm2d(w), nn.ReLU()) for c, w in sizes
        )
        self.head = nn.Linear(8, classes)

    def forward(self, images):
        return cut(self)(images)


def teacher(classes):
    return Small(classes, (8, 8))


def student(classes):
    return Small(classes, (6, 8))


def cut(network):
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), network.head)
    return nn.Sequential(network.stem, *network.stages, head)
"""
ABSORB = """

def absorb(block, matrix):
    layer = block[0]
    layer.weight = nn.Parameter(torch.einsum("ocuv,ci->oiuv", layer.weight.double(), matrix).float())
    return True
"""


def run(*words):
    return train_fskd.main(["--dataset", "Folder", "--networks", "small.py", "--device", "cpu", *words])


@pytest.fixture
def with_teacher(at_home):
    (at_home / "small.py").write_text(NETWORKS + ABSORB)
    assert run("--train_teacher", "--teacher_epochs", "2") == 0
    return at_home


def test_from_teacher_to_exported_student(with_teacher, capsys):
    """The student has no adapters, the keys of its own class, and what it has learned with BatchNorm."""
    (file,) = with_teacher.glob("ckpt/teacher/*.pth")
    assert file.name == "small-folder-32px.pth"
    assert records.of(file)["networks"] == "small"
    before = torch.load(file, weights_only=True)
    assert run("--nshot", "1", "--trials", "1") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("use one: ")]
    assert train_fskd.main(shlex.split(line)[4:]) == 0
    folder = with_teacher / "runs/Folder-small"
    result = json.loads((folder / "results/1-shot/trial-0.json").read_text())
    assert result["setting"]["networks"] == "small" and result["setting"]["batchnorm"] == "training mode"
    assert result["setting"]["networks_sha256"] and list(result["phases"]) == ["B0", "B1", "L2"]
    student = with_teacher / result["students"]["last"]
    state = torch.load(student, weights_only=True)
    namespace = {}
    exec(NETWORKS, namespace)
    namespace["student"](3).load_state_dict(state, strict=True)
    assert all(torch.equal(state[key], before[key]) for key in ("stem.weight", "head.weight"))
    after = torch.load(file, weights_only=True)
    assert all(torch.equal(after[key], before[key]) for key in before)

    assert run("--evaluate", str(student)) == 0
    assert "| student without adapters |" in capsys.readouterr().out
    assert run("--export", str(student), "--to", "s.pt2") == 0
    assert run("--evaluate", "s.pt2") == 0
    assert "| student, exported |" in capsys.readouterr().out
    assert run("--export", str(student), "--to", "s.pth") == 2
    assert "--to s.pth: a .pth file of small could not be loaded again; take .pt2 or .onnx" in capsys.readouterr().err
    assert run("--evaluate", str(student), "--grafted", "1-1") == 2
    assert "is a student of small, not small-blocks1-1; give --networks, --grafted" in capsys.readouterr().err


DROPOUT = {
    "self.head = nn.Linear(8, classes)": "self.head, self.dropout = nn.Linear(8, classes), nn.Dropout()",
    "nn.Flatten(), network.head": "nn.Flatten(), network.dropout, network.head",
}


def test_a_teacher_with_dropout_is_the_same_whatever_ran_before(at_home):
    text = NETWORKS
    for plain, dropping in DROPOUT.items():
        text = text.replace(plain, dropping)
    (at_home / "small.py").write_text(text)
    for random_state in (1, 2):
        torch.manual_seed(random_state)
        assert run("--train_teacher", "--teacher_epochs", "2", "--teacher", f"{random_state}.pth") == 0
    assert records.of(Path("1.pth"))["weights_sha256"] == records.of(Path("2.pth"))["weights_sha256"]


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ("2 * matrix", "--networks small: absorb() is not exact: without adapters, the"),
        ("none", "--networks small.py: NameError: name 'none' is not defined"),
    ],
)
def test_a_wrong_absorb_is_found_before_a_student_is_trained(with_teacher, capsys, matrix, message):
    (with_teacher / "small.py").write_text(NETWORKS + ABSORB.replace("double(), matrix", f"double(), {matrix}"))
    capsys.readouterr()
    assert run("--nshot", "1", "--trials", "1") == 2
    assert message in capsys.readouterr().err
    assert not list(with_teacher.glob("ckpt/student/small*")) and not list(with_teacher.rglob("*.checkpoint.pt"))


SEQUENTIAL = """
from torch import nn

GRAFTED, IMAGE_SIZE = (1, 1), 32


def made(classes, width):
    widths = nn.Conv2d(4, width, 3, padding=1), nn.Conv2d(width, 8, 3, padding=1)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))
    return nn.Sequential(nn.Conv2d(3, 4, 3, 4, padding=1), nn.Sequential(*widths, nn.ReLU()), head)


def teacher(classes):
    return made(classes, 8)


def student(classes):
    return made(classes, 6)


def cut(network):
    return network
"""


@pytest.mark.parametrize("absorb", ["", "\n\ndef absorb(block, matrix):\n    return False\n"])
def test_networks_whose_keys_begin_with_numbers(at_home, capsys, absorb):
    """As in a plain nn.Sequential: neither teacher nor student is taken for the scions of stage 2."""
    (at_home / "small.py").write_text(SEQUENTIAL + absorb)
    assert run("--train_teacher", "--teacher_epochs", "1") == 0
    assert run("--nshot", "1", "--trials", "1") == 0
    student = "ckpt/student/small-student-graft-net-Tiny-1perclass-trial0.pth"
    assert run("--evaluate", "ckpt/teacher/small-folder-32px.pth") == 0
    assert "| teacher |" in capsys.readouterr().out
    assert run("--evaluate", student) == 0 and run("--export", student, "--to", "s.onnx") == 0


def test_an_interruption_of_the_users_file_is_one_line(with_teacher, capsys):
    (with_teacher / "small.py").write_text("raise KeyboardInterrupt")
    capsys.readouterr()
    assert run("--nshot", "1", "--trials", "1") == 130
    assert capsys.readouterr().err == "train_fskd.py: interrupted; nothing was begun\n"


def test_without_absorb_a_student_keeps_its_adapters(with_teacher, capsys):
    (with_teacher / "small.py").write_text(NETWORKS)
    assert run("--nshot", "1", "--trials", "1") == 0
    student = "ckpt/student/small-student-graft-net-Tiny-1perclass-trial0.pth"
    assert "0.1.bias" in torch.load(student, weights_only=True)  # of s2t behind the first block
    assert run("--evaluate", student) == 0 and run("--export", student, "--to", "s.onnx") == 0
    assert run("--evaluate", "s.onnx") == 0
    assert run("--nshot", "1", "--trials", "1", "--method", "kd") == 0
    student = "ckpt/student/small-student-kd-net-Tiny-1perclass-trial0.pth"
    assert run("--evaluate", student) == 0 and run("--export", student) == 0
    assert Path(student.replace(".pth", "-exported.pt2")).exists()
    assert run("--evaluate", student.replace(".pth", "-exported.pt2")) == 0


def test_grafted_blocks_and_methods(with_teacher, capsys, monkeypatch):
    assert run("--nshot", "1", "--trials", "1", "--grafted", "2-2") == 0
    assert (with_teacher / "runs/Folder-small-blocks2-2/table.md").exists()
    for method in ("whole", "kd"):
        assert run("--nshot", "1", "--trials", "1", "--method", method) == 0
    monkeypatch.setattr(sweep, "_prepared", lambda *_: pytest.fail("the teacher's features were computed"))
    torch.save({"head.weight": torch.zeros(3, 8)}, "other.pth")
    for flags, fault in {
        "--method fskd": "--method fskd: is for VGGs only, not for --networks small",
        "--method fitnets": "--method fitnets: is for VGGs only",
        "--nshot 1 --method kd --grafted 1-1": "--method kd: in front of block 2 the teacher has",
        "--grafted 1-3": "--grafted 1-3: small has the blocks 1-2 to graft",
        "--start teacher": "--start teacher: there is no rule for small; leave it out",
        "--train_teacher --teacher torchvision": "--teacher torchvision: is for ResNets",
        "--diagnose": "--diagnose: is for VGGs, on which its limits were measured, not for small",
        "--evaluate other.pth": "other.pth: head.bias is missing; not weights of the network that --networks names",
        "--teacher torchvision": "--teacher torchvision: is for ResNets; torchvision has no weights of small",
        "--train_teacher --fresh --teacher_recipe quick": "--teacher_recipe: is for VGGs; small has a recipe",
    }.items():
        capsys.readouterr()
        assert run(*flags.split()) == 2
        assert fault in capsys.readouterr().err


def test_names_are_those_of_the_command_line():
    assert list(networks.NETWORKS) == list(arguments.NETWORK_NAMES)
    parser = arguments.command_line("x", "x")
    assert parser.parse_args(["--networks", "resnet34-resnet18"]).networks == "resnet34-resnet18"
    with pytest.raises(SystemExit):
        parser.parse_args(["--networks", "resnet101"])
