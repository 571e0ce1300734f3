import io
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from small import CLASSES, TINY, frozen_teacher, small_teacher
from torch import nn

from deployment.networks import candidates
from grafting.scions import scions
from models import checkpoints
from models.architectures import ARCHITECTURES, Architecture
from models.vgg import BlockwiseVGG
from utils import files
from utils.errors import BadInput

B0 = ["0.0.weight", "0.0.bias", "0.2.weight", "0.2.bias", "0.4.weight", "0.4.bias", "1.weight", "1.bias"]
B1 = ["0.weight", "0.bias", *(f"1.{p}.{k}" for p in (0, 2, 4) for k in ("weight", "bias")), "2.weight", "2.bias"]
B2 = ["0.weight", "0.bias", "1.1.0.weight", "1.1.0.bias", "1.1.1.weight", "1.1.1.bias"]
SHAPES = {"0.0.0.weight": (256, 256, 3, 3), "0.1.weight": (512, 256, 1, 1), "1.0.weight": (256, 512, 1, 1),
          "1.2.weight": (512, 256, 1, 1), "2.0.weight": (256, 512, 1, 1), "2.1.1.0.weight": (512, 256),
          "2.1.1.1.weight": (10, 512)}  # fmt: skip


def is_legacy(path):
    return path.read_bytes()[:2] == b"\x80\x02"  # a pickle, where newer files are zip archives


def test_students_have_the_released_keys_shapes_and_types(tmp_path):
    students = scions(frozen_teacher(BlockwiseVGG(ARCHITECTURES["vgg16"], 10)), torch.Generator())
    checkpoints.write_stage1(students, tmp_path / "block.pth")
    checkpoints.write_state(checkpoints.on_cpu(torch.nn.Sequential(*students)), tmp_path / "net.pth")
    block, net = (torch.load(tmp_path / name, weights_only=True) for name in ("block.pth", "net.pth"))
    assert [list(block[f"block-{k}"]) for k in range(3)] == [B0, B1, B2]
    assert list(net) == [f"{k}.{key}" for k, keys in enumerate((B0, B1, B2)) for key in keys]
    assert len(net) == 24
    assert all(value.dtype == torch.float32 and value.is_contiguous() for value in net.values())
    assert {key: tuple(net[key].shape) for key in SHAPES} == SHAPES
    assert is_legacy(tmp_path / "block.pth") and is_legacy(tmp_path / "net.pth")


def test_students_come_back(tmp_path):
    students, fresh = (scions(frozen_teacher(), torch.Generator().manual_seed(seed)) for seed in (0, 1))
    checkpoints.write_stage1(students, tmp_path / "block.pth")
    kind, states = checkpoints.read(tmp_path / "block.pth")
    assert kind == "stage 1"
    for scion, state, original in zip(fresh, states, students, strict=True):
        checkpoints.load(scion, state, tmp_path)
        assert all(torch.equal(a, b) for a, b in zip(scion.parameters(), original.parameters(), strict=True))


def test_teacher_comes_back(teacher, tmp_path):
    path = tmp_path / "teacher.pth"
    checkpoints.write_network(teacher.to(memory_format=torch.channels_last), path)
    again = checkpoints.read_teacher(path, CLASSES)
    assert again.architecture == TINY and is_legacy(path)
    for key, value in torch.load(path, weights_only=True).items():
        assert value.is_contiguous() and torch.equal(value, teacher.state_dict()[key])


def test_files_saved_from_cuda_load_here(teacher, tmp_path, monkeypatch):
    buffer = io.BytesIO()
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    torch.save(teacher.state_dict(), buffer, _use_new_zipfile_serialization=False)
    assert b"cuda:0" in buffer.getvalue()
    (tmp_path / "teacher.pth").write_bytes(buffer.getvalue())
    assert checkpoints.read_teacher(tmp_path / "teacher.pth", CLASSES).architecture == TINY


def state_without(state, key):
    return OrderedDict((k, v) for k, v in state.items() if k != key)


LAST_TWO = ("features.3.2.weight", "features.4.0.weight")  # a network of these widths has 10^13 weights


def of_data_parallel(state):
    return {f"module.{name}": value for name, value in state.items()}


def contents():
    """What a file of each kind holds."""
    teacher = frozen_teacher()
    made = scions(teacher, torch.Generator())
    return {
        "network": teacher.network.state_dict(),
        "stage 1": {f"block-{k}": scion.state_dict() for k, scion in enumerate(made)},
        "stage 2": torch.nn.Sequential(*made).state_dict(),
    }


def test_prefixes_of_both_wrappers_are_removed(tmp_path):
    path, content, lines = tmp_path / "x.pth", contents()["network"], []
    torch.save({f"module._orig_mod.{name}": value for name, value in content.items()}, path)
    _, state = checkpoints.read(path, lines.append)
    assert list(state) == list(content) and lines == [f"{path}: names without 'module.', names without '_orig_mod.'"]


@pytest.mark.parametrize("kind", ["network", "stage 1", "stage 2"])
@pytest.mark.parametrize("key", [None, "state_dict", "model", "net", "model_state_dict"])
@pytest.mark.parametrize("parallel", [False, True])
def test_a_state_is_found_as_other_programs_save_it(tmp_path, kind, key, parallel):
    """In a training checkpoint, of a network in DataParallel, or both; --teacher_from and all other flags read so."""
    path, content, lines = tmp_path / "x.pth", contents()[kind], []
    torch.save(content, path)
    _, expected = checkpoints.read(path, lines.append)
    assert lines == []
    if parallel:
        parts = {name: of_data_parallel(state) for name, state in content.items()} if kind == "stage 1" else None
        content = parts or of_data_parallel(content)
    torch.save({key: content, "epoch": 3, "optimizer": {"state": {}}} if key else content, path)
    found, state = checkpoints.read(path, lines.append)
    said = [f"state_dict in key '{key}'"] * bool(key) + ["names without 'module.'"] * parallel
    assert lines == [f"{path}: {', '.join(said)}"] * bool(said) and found == kind
    for ours, theirs in zip(*(states if kind == "stage 1" else [states] for states in (state, expected)), strict=True):
        assert list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_as_float32(tmp_path, half):
    """The networks are those of a float32 file with the same values."""

    def stored(state, dtype):
        return {name: value.to(half).to(dtype) if value.is_floating_point() else value for name, value in state.items()}

    for kind, content in contents().items():
        states = []
        for dtype in (half, torch.float32):
            parts = content.items() if kind == "stage 1" else ()
            torch.save({k: stored(part, dtype) for k, part in parts} or stored(content, dtype), tmp_path / "x.pth")
            found, state = checkpoints.read(tmp_path / "x.pth")
            states.append(state if kind == "stage 1" else [state])
        assert found == kind
        for ours, theirs in zip(*states, strict=True):
            assert [value.dtype for value in ours.values()] == [value.dtype for value in theirs.values()]
            assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    torch.save(stored(contents()["network"], half), tmp_path / "x.pth")
    assert {p.dtype for p in checkpoints.read_teacher(tmp_path / "x.pth", CLASSES).parameters()} == {torch.float32}


class RunsCode:
    def __reduce__(self):
        return (print, ("this must never be printed",))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda s: state_without(s, "features.0.0.bias"), "features.0.0.bias is missing"),
        (lambda s: {**s, "extra": torch.zeros(1)}, "extra is not expected"),
        (lambda s: {**s, "features.1.0.weight": torch.zeros(4, 5, 3, 3)}, "expected torch.float32 (4, 4, 3, 3)"),
        (lambda s: {**s, "features.1.0.bias": s["features.1.0.bias"].double()}, "torch.float64"),
        (lambda s: {**s, "features.1.0.bias": s["features.1.0.bias"] * float("nan")}, "not finite"),
        (lambda s: state_without(s, "classifier.2.weight"), "has no classifier.2.weight"),
        (lambda s: {k: v for k, v in s.items() if "features.4" not in k}, "has convolution blocks [0, 1, 2, 3]"),
        (lambda s: [1, 2], "neither a network's weights nor a student"),
        (lambda s: {"weights": s}, "neither a network's weights nor a student"),
        (lambda s: {"model": s, "net": s}, "holds states in the keys model, net; save one of them alone"),
        (lambda s: {"features.0.0.bias": 0, **of_data_parallel(s)}, "neither a network's weights nor a student"),
        (lambda s: RunsCode(), "not a checkpoint, or damaged"),
        (lambda s: small_teacher(), "holds models.vgg.BlockwiseVGG, not only tensors; save model.state_dict()"),
        (lambda s: {"model": s, "args": Namespace()}, "holds argparse.Namespace, not only tensors; save model.state"),
        (lambda s: {}, "neither a network's weights nor a student"),
        (lambda s: {**s, "features.99.0.weight": torch.zeros(4, 4, 3, 3)}, "blocks [0, 1, 2, 3, 4, 99]"),
        (lambda s: {**s, "features.0.99.weight": torch.zeros(4, 4, 3, 3)}, "features.0.2.bias is missing"),
        (lambda s: {**s, "classifier.0.weight": torch.tensor(1.0)}, "not a block-wise VGG, or damaged"),
        (lambda s: {**s, **dict.fromkeys(LAST_TWO, torch.zeros(10**6, 1, 1, 1))}, "expected torch.float32 (1000000, "),
    ],
)
def test_files_that_are_no_teacher_are_refused_in_one_line(teacher, tmp_path, change, fault, capsys):
    torch.save(change(teacher.state_dict()), tmp_path / "teacher.pth")
    with pytest.raises(BadInput, match=r"teacher\.pth") as refusal:
        checkpoints.read_teacher(tmp_path / "teacher.pth", CLASSES)
    assert fault in str(refusal.value) and "\n" not in str(refusal.value)
    assert capsys.readouterr().out == ""


UNUSUAL = {
    "flat": lambda weight: weight.flatten(),
    "float8": lambda weight: weight.to(torch.float8_e4m3fn),
    "not finite": lambda weight: weight / 0,
}


@pytest.mark.parametrize("kind", UNUSUAL)
@pytest.mark.parametrize("file", ["teacher", "block", "net"])
def test_unusual_tensors_are_refused_in_one_line(dataset, tmp_path, file, kind):
    """As --evaluate reads them."""
    frozen, path = frozen_teacher(), tmp_path / f"{file}.pth"
    content = contents()[{"teacher": "network", "block": "stage 1", "net": "stage 2"}[file]]
    state, key = (content["block-1"], "1.0.weight") if file == "block" else (content, "features.3.0.weight")
    key = "1.1.0.weight" if file == "net" else key
    state[key] = UNUSUAL[kind](state[key].detach())
    torch.save(content, path)
    with pytest.raises(BadInput, match=rf"{file}\.pth: {key} ") as refusal:
        found, state = checkpoints.read(path)
        if found == "network":
            checkpoints.vgg_from_state(state, path, CLASSES)
        candidates(found, state, path, frozen, dataset)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("size", [0, 100, -100])
@pytest.mark.parametrize("legacy", [True, False])
def test_incomplete_files_are_refused_in_one_line(teacher, tmp_path, size, legacy):
    path = tmp_path / "teacher.pth"
    files.write_tensors(path, teacher.state_dict(), legacy)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(BadInput, match=r"teacher\.pth: not a checkpoint, or damaged") as refusal:
        checkpoints.read_teacher(path, CLASSES)
    assert "\n" not in str(refusal.value)


def test_other_faults_of_a_teachers_file(teacher, tmp_path):
    with pytest.raises(BadInput, match="no such file"):
        checkpoints.read_teacher(tmp_path / "nowhere.pth", CLASSES)
    with pytest.raises(BadInput, match="is a directory"):
        checkpoints.read_teacher(tmp_path, CLASSES)
    checkpoints.write_network(teacher, tmp_path / "teacher.pth")
    with pytest.raises(BadInput, match="has 3 classes, the data set 10"):
        checkpoints.read_teacher(tmp_path / "teacher.pth", 10)
    checkpoints.write_stage1(scions(frozen_teacher(), torch.Generator()), tmp_path / "block.pth")
    with pytest.raises(BadInput, match="is a student of stage 1, not a teacher"):
        checkpoints.read_teacher(tmp_path / "block.pth", CLASSES)


def test_teachers_of_every_depth_are_recognised(tmp_path):
    for convolutions in (1, 2, 4):
        architecture = Architecture(((4,), (5,) * 2, (6,) * convolutions, (7,) * convolutions, (8,)), hidden=9)
        checkpoints.write_network(BlockwiseVGG(architecture, 10), tmp_path / "teacher.pth")
        assert checkpoints.read_teacher(tmp_path / "teacher.pth", 10).architecture == architecture


def test_a_network_is_known_by_its_weights(teacher, tmp_path):
    """Two files of one network differ: they say where the tensors lay in memory."""
    one, two = tmp_path / "one.pth", tmp_path / "two.pth"
    checkpoints.write_network(teacher, one)
    checkpoints.write_network(checkpoints.read_teacher(one, CLASSES), two)
    assert one.read_bytes() != two.read_bytes()
    again = checkpoints.read_teacher(two, CLASSES).to(memory_format=torch.channels_last)
    assert checkpoints.weights_sha256(again) == checkpoints.weights_sha256(teacher)
    with torch.no_grad():
        again.features[4][0].bias[0] += 1e-6
    assert checkpoints.weights_sha256(again) != checkpoints.weights_sha256(teacher)


def test_the_hash_of_weights_does_not_change():
    """Results and students name it."""
    layer = torch.nn.Linear(2, 1)
    layer.load_state_dict({"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.tensor([3.0])})
    expected = b"weight torch.float32 (1, 2) " + np.float32([1, 2]).tobytes()
    expected += b"bias torch.float32 (1,) " + np.float32([3]).tobytes()
    assert checkpoints.weights_sha256(layer) == files.sha256(expected)


@pytest.mark.parametrize("grafted", [(3, 5), (1, 5), (5, 5)])
@pytest.mark.parametrize("kind", ["stage 1", "stage 2"])
def test_the_classes_of_a_student_of_any_blocks_are_seen(grafted, kind):
    teacher = frozen_teacher()
    teacher.networks = teacher.networks.grafted_at(*grafted)
    made = scions(teacher, torch.Generator())
    state = [scion.state_dict() for scion in made] if kind == "stage 1" else nn.Sequential(*made).state_dict()
    checkpoints.require_classes(kind, state, Path("s.pth"), 3)
    with pytest.raises(BadInput, match=r"s\.pth: has 3 classes, the data set 4; name its --dataset"):
        checkpoints.require_classes(kind, state, Path("s.pth"), 4)
