"""An exported file is the student's function in every format, and nothing that is not is put in place."""

import json
import re
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from small import frozen_teacher, pictures, small_dataset
from torch import nn

from data.views import Normalization
from deployment import export as export_module
from deployment import formats, networks
from deployment.export import Source, export, require_same, require_small_loss, require_target
from deployment.student import load
from grafting.scions import scions
from grafting.students import graft_of
from models import checkpoints
from models.networks import frozen
from utils.errors import BadInput

CPU = torch.device("cpu")
FORMATS = [".pth", ".pt2", ".onnx", ".int8.onnx"]


def needs_onnx(ending):
    if ending.endswith("onnx"):
        for module in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(module)


@pytest.fixture(scope="module")
def source():
    teacher = frozen_teacher()
    student = nn.Sequential(*scions(teacher, torch.Generator().manual_seed(0)))
    random = torch.Generator().manual_seed(1)
    for layer in student.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.normal_(layer.bias, 0.0, 0.3, generator=random)
        if isinstance(layer, nn.Linear):
            layer.weight.data.mul_(30)
    return Source(teacher, frozen(graft_of(teacher, student)), small_dataset(), pictures(6), "of the student")


@pytest.fixture(scope="module")
def exported(source, tmp_path_factory):
    """A function: the file of each format, written once."""

    @cache
    def written(ending):
        needs_onnx(ending)
        path = tmp_path_factory.mktemp("exported") / f"student{ending}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(export_module, "INT8_LOSS", 100)  # the small student is not worth 8 bits
            line = export(source, path)
        assert str(path) in line and f"{path.stat().st_size / 1e6:.1f} MB" in line
        return path

    return written


@pytest.mark.parametrize("ending", FORMATS)
def test_every_format_is_the_students_function(source, exported, ending):
    student = load(exported(ending))
    header = student.header
    assert student.class_names == ("a", "b", "c") and header["accuracy"] >= 0 and header["temperature"] > 0
    assert header["teacher_sha256"] == checkpoints.weights_sha256(source.teacher.network)
    for count in (1, 5):
        images = torch.from_numpy(pictures(count, seed=count))
        expected = source.logits(images) / header["temperature"]
        found = student(images)
        assert found.shape == expected.shape
        tolerance = 0.2 if ending == ".int8.onnx" else 1e-4
        assert (found - expected).abs().max() <= tolerance * expected.abs().max()
    if ending.endswith("onnx"):
        import onnx

        graph = onnx.load(exported(ending)).graph
        for value, sizes in ((graph.input[0], ["batch", 3, 32, 32]), (graph.output[0], ["batch", 3])):
            dimensions = value.type.tensor_type.shape.dim
            assert [dimension.dim_param or dimension.dim_value for dimension in dimensions] == sizes


@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize("ending", [".onnx", ".pt2"])
def test_what_the_docs_say_of_use_without_the_repository(exported, ending, transparent, tmp_path, monkeypatch, capsys):
    needs_onnx(".onnx")
    page = (ROOT / "docs/deployment.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    (of_pt2,) = re.findall(r"`(torch\.export\.load.*)`", page)
    shutil.copy(exported(".onnx"), tmp_path / "student.onnx")
    shutil.copy(exported(".pt2"), tmp_path / "student.pt2")
    (tmp_path / "docs").mkdir()
    with Image.open(ROOT / "docs/star.jpg") as star:
        if transparent:
            star.putalpha(Image.linear_gradient("L").resize(star.size))
        star.save(tmp_path / "docs/star.jpg", "png")
    monkeypatch.chdir(tmp_path)
    names = {"torch": torch}
    exec(code, names)
    logits = torch.from_numpy(names["logits"]) if ending == ".onnx" else eval(of_pt2, names)
    predicted = dict(load(exported(".pth")).predict(["docs/star.jpg"])[0])
    assert capsys.readouterr().out.strip() == max(predicted, key=predicted.get)
    assert logits.softmax(1)[0].tolist() == pytest.approx([predicted[name] for name in "abc"], abs=1e-4)


def test_a_file_that_is_another_function_is_not_put_in_place(source, tmp_path, monkeypatch):
    deployed = export_module.deployed

    def faulty(*arguments):
        network = deployed(*arguments)
        network.linear.bias.data[0] += 1
        return network

    monkeypatch.setattr(export_module, "deployed", faulty)
    with pytest.raises(BadInput, match="not written, since it is not the student's function"):
        export(source, tmp_path / "student.pth")
    assert not list(tmp_path.iterdir())


def test_logits_may_differ_by_1e_4_of_the_largest_and_predictions_by_rounding():
    file, reference = Path("x.pth"), torch.tensor([[8.0, 0.0, -4.0], [1.0, 5.0, 2.0]])
    for sign in (1, -1):
        logits = reference.clone()
        logits[1, 0] += sign * 0.9e-4 * 8
        assert "the same predictions on 2 test images" in require_same(logits, reference, file)
        logits[1, 0] += sign * 0.2e-4 * 8
        with pytest.raises(BadInput, match=r"0 of 2 test images .* logits differ by 1\.1e-04 of the largest"):
            require_same(logits, reference, file)
    with pytest.raises(BadInput, match="logits differ by nan"):
        require_same(torch.full_like(reference, torch.nan), reference, file)
    for lead in (0.8e-6, 3e-6):  # within 1e-4 of the largest, and another class is predicted
        logits, reference = (torch.tensor([[8.0, 0.0], row]) for row in ([1 - 8 * lead, 1.0], [1.0, 1 - 8 * lead]))
        if lead < 1e-6:
            assert "2 test images but 1, whose two largest logits are equal" in require_same(logits, reference, file)
        else:
            with pytest.raises(BadInput, match="1 of 2 test images are classified differently"):
                require_same(logits, reference, file)


def test_8_bits_may_cost_three_tenths_of_a_point():
    """Three images of 1000, but not four; none is demanded."""
    labels, file = torch.zeros(1000, dtype=torch.long), Path("x.int8.onnx")

    def logits(count):
        return torch.tensor([[1.0, 0.0]] * count + [[0.0, 1.0]] * (1000 - count))

    for right in (1000, 913, 645, 8):
        for lost in (3, 0, -5 if right < 1000 else 0):
            found = require_small_loss(logits(right - lost), logits(right), labels, file)
            assert f"{lost / 10:.2f} points lost" in found
        with pytest.raises(BadInput, match=r"8 bits lose 0\.40 points of test accuracy"):
            require_small_loss(logits(right - 4), logits(right), labels, file)


def test_8_bits_that_cost_too_much_are_not_put_in_place(source, exported, tmp_path, monkeypatch):
    needs_onnx(".onnx")
    in_8_bits = exported(".int8.onnx").read_bytes()
    monkeypatch.setattr(export_module, "INT8_LOSS", -101)
    monkeypatch.setattr(formats, "write", lambda network, header, path: path.write_bytes(in_8_bits))
    with pytest.raises(BadInput, match=r"8 bits lose .* points of test accuracy; take \.onnx"):
        export(source, tmp_path / "student.int8.onnx")
    assert not list(tmp_path.iterdir())


def test_targets(tmp_path, source, monkeypatch):
    with pytest.raises(BadInput, match=r"ends in none of \.pth, \.pt2"):
        export(source, tmp_path / "student.h5")
    path = tmp_path / "student.pth"
    export(source, path)
    with pytest.raises(BadInput, match="exists already; --fresh replaces it"):
        require_target(path, fresh=False)
    require_target(path, fresh=True)
    (tmp_path / "notes.onnx").write_text("notes")
    (tmp_path / "folder.pth").mkdir()
    torch.save({"weights": torch.ones(1)}, tmp_path / "other.pth")
    for name in ("notes.onnx", "folder.pth", "other.pth"):
        with pytest.raises(BadInput, match="exists already and is no exported student"):
            require_target(tmp_path / name, fresh=True)
    monkeypatch.setattr(formats.importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError(name)))
    with pytest.raises(BadInput, match=r"needs onnx; pip install -r requirements-onnx\.txt"):
        require_target(tmp_path / "student.onnx", fresh=False)


@pytest.mark.parametrize("ending", [".pth", ".pt2", ".onnx"])
def test_torn_and_foreign_files_are_refused_in_one_line(exported, tmp_path, ending):
    content = exported(ending).read_bytes()
    for name, torn in (("half", content[: len(content) // 2]), ("empty", b""), ("foreign", b"no student")):
        damaged = tmp_path / f"{name}{ending}"
        damaged.write_bytes(torn)
        with pytest.raises(BadInput, match=f"{name}{ending}") as refusal:
            load(damaged)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("ending", FORMATS)
def test_changed_bytes_are_noticed(exported, tmp_path, ending):
    content = exported(ending).read_bytes()
    damaged = tmp_path / f"student{ending}"
    largest = load(exported(ending)) if ending == ".pth" else None
    places = [len(content) * k // 40 for k in range(2, 38)]
    if largest is not None:  # in the middle of a weight
        places.append(content.index(next(largest.parameters()).detach().numpy().tobytes()[:64]) + 17)
    for place in places:
        damaged.write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])
        try:
            student = load(damaged)
        except BadInput:
            continue
        images = torch.from_numpy(pictures(2))  # padding between the parts of a file means nothing
        assert torch.equal(student(images), load(exported(ending))(images)), place


@pytest.mark.parametrize("ending", [".pth", ".pt2", ".onnx"])
def test_other_images_are_refused(exported, ending):
    student = load(exported(ending))
    for shape, dtype in (
        ((2, 3, 32, 32), torch.float32),
        ((2, 1, 32, 32), torch.uint8),
        ((2, 3, 28, 28), torch.uint8),
        ((3, 32, 32), torch.uint8),
    ):
        with pytest.raises(ValueError, match=r"\(B, 3, 32, 32\) of torch.uint8 expected, not \("):
            student(torch.zeros(shape, dtype=dtype))
    for wrong, message in (("picture.png", "a list of pictures"), ([np.zeros((32, 32, 3))], "ndarray: neither a file")):
        with pytest.raises(TypeError, match=message):
            student.predict(wrong)


def test_a_header_that_does_not_fit_the_weights_is_refused(exported, tmp_path):
    path = tmp_path / "student.pth"
    content = torch.load(exported(".pth"), weights_only=True)
    header = json.loads(content[formats.KEY])
    for changed in ({"class_names": ["a"]}, {"widths": [[4], [4]]}, {"widths": None}):
        torch.save({**content, formats.KEY: json.dumps({**header, **changed})}, path)
        with pytest.raises(BadInput, match=r"student\.pth"):
            load(path)


def test_predictions_of_pictures(exported, tmp_path):
    student = load(exported(".pth"))
    (image,) = pictures(1, seed=5)
    picture = Image.fromarray(image.transpose(1, 2, 0))
    picture.save(tmp_path / "picture.png")
    from_file, from_pillow = student.predict([tmp_path / "picture.png", picture])
    assert from_file == from_pillow
    probabilities = torch.softmax(student(torch.from_numpy(image[None])), 1)[0]
    assert dict(from_file) == pytest.approx({name: probabilities[k].item() for k, name in enumerate("abc")})
    assert [p for _, p in from_file] == sorted((p for _, p in from_file), reverse=True)
    assert student.predict([]) == []
    with pytest.raises(BadInput, match=r"missing\.png"):
        student.predict([tmp_path / "missing.png"])
    sizes = []  # many go through in parts, so that memory does not grow with their number
    student.register_forward_pre_hook(lambda module, images: sizes.append(len(images[0])))
    assert len(student.predict([picture] * 600)) == 600 and max(sizes) <= 250


def test_the_header_of_8_bits_holds_the_files_own_accuracy(source, exported, tmp_path, monkeypatch):
    """They are of another student than the one that is exported, which always predicts the last class."""
    needs_onnx(".onnx")
    in_8_bits, target = exported(".int8.onnx").read_bytes(), tmp_path / "student.int8.onnx"
    monkeypatch.setattr(export_module, "INT8_LOSS", 100)
    monkeypatch.setattr(formats, "write", lambda network, header, path: path.write_bytes(in_8_bits))
    student = nn.Sequential(*scions(source.teacher, torch.Generator()))
    *_, last = (layer for layer in student.modules() if isinstance(layer, nn.Linear))
    last.bias.data[-1] = 1e3
    other = replace(source, student=frozen(graft_of(source.teacher, student)), student_sha256="of the other")
    images, labels = source.teacher.test.images, source.teacher.test_labels
    of_file = export_module.accuracy_of(load(exported(".int8.onnx"))(torch.from_numpy(np.asarray(images))), labels)
    assert of_file != export_module.accuracy_of(other.logits(images), labels)
    assert f"test accuracy {of_file:.2f}%" in export(other, target)
    header = formats.read(target)[1]
    assert (header["accuracy"], header["student_sha256"]) == (of_file, "of the other")


def test_other_dtypes_of_the_weights(exported):
    """As on a GPU: student.half(), student.bfloat16()."""
    images = torch.from_numpy(pictures(20))
    expected = load(exported(".pth"))(images)
    for dtype, tolerance in ((torch.float64, 1e-4), (torch.float16, 0.01), (torch.bfloat16, 0.05)):
        student = load(exported(".pth")).to(dtype)
        logits = student(images)
        assert logits.dtype == dtype
        assert (logits - expected).abs().max() < tolerance * expected.abs().max(), dtype
        assert sum(chance for _, chance in student.predict([ROOT / "docs/star.jpg"])[0]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("ending", [".pth", ".pt2"])
def test_class_names_and_normalisation_are_inside(source, exported, tmp_path, ending):
    """Names: a no-break space, an emoji of several characters, a byte that is no text, a line break."""
    names = ("caf\u00e9\u00a0noir", "\U0001f469\u200d\U0001f33e", "\udce9\n")
    other = replace(source.dataset, class_names=lambda: names, normalization=Normalization((0.1,) * 3, (0.9,) * 3))
    path, images = tmp_path / f"x{ending}", torch.from_numpy(pictures(3))
    export(replace(source, teacher=frozen_teacher(dataset=other), dataset=other), path)
    assert load(path).class_names == names
    assert not np.allclose(load(path)(images), load(exported(ending))(images), rtol=1e-2)
    renamed = replace(other, class_names=lambda: (*names[:2], "d"))
    with pytest.raises(BadInput, match=r'which are not the 3 of Tiny \(3: .*, now "d"\); name its --dataset'):
        networks.exported(path, *formats.read(path), renamed, CPU)
