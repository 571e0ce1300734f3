import json

import pytest
from conftest import ROOT

from experiments import results
from models import checkpoints, records
from utils import files
from utils.errors import BadInput

EXPECTED = {"teacher_sha256": "t", "normalization": {"mean": [0.5], "std": [0.25]}, "class_names": ["a", "b"]}


@pytest.fixture
def student(tmp_path):
    """A file with its record."""
    path = tmp_path / "student.pth"
    path.write_bytes(b"weights")
    records.write(path, EXPECTED)
    return path


def test_a_record_that_agrees_gives_no_message(student):
    assert records.check(student, EXPECTED) is None


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("teacher_sha256", "u", r"another teacher \(.*; name that one with --teacher"),
        (
            "normalization",
            {"mean": [0.5], "std": [0.26]},  # of a folder whose pictures have changed: no flag sets it
            r"another normalisation \(.*use those that it was made with, or train a teacher on these under another",
        ),
        ("class_names", ["b", "a"], r"other class names \("),
    ],
)
def test_a_record_that_disagrees_is_refused(student, key, value, named):
    with pytest.raises(BadInput, match=rf"student\.pth: was made with {named}") as refusal:
        records.check(student, {**EXPECTED, key: value})
    assert "\n" not in str(refusal.value)


def test_what_cannot_be_checked_is_named(student):
    assert records.check(student, {**EXPECTED, "image_size": 32}).endswith("not checked: image size")
    student.write_bytes(b"other weights")
    said = records.check(student, EXPECTED)
    assert "student.json is the record of another file; not checked: teacher, normalisation" in said
    records.announce(student, EXPECTED)
    said = records.check(student, EXPECTED)
    assert "the command that was writing it, again, completes it; not checked: teacher" in said
    records.path_of(student).unlink()
    said = records.check(student, EXPECTED)
    assert "has no record beside it; not checked: teacher, normalisation, class names" in said


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_a_damaged_record_is_refused(student, content):
    records.path_of(student).write_text(content)
    with pytest.raises(BadInput, match=r"student\.json: not the record of a network's file"):
        records.check(student, EXPECTED)


def test_what_decides_predictions(dataset):
    found = json.loads(json.dumps(records.deciding(dataset, "t")))
    assert found == {
        "teacher_sha256": "t",
        "normalization": {"mean": [0.5, 0.4, 0.6], "std": [0.2, 0.25, 0.3]},
        "class_names": list(dataset.class_names()),
        "image_size": 32,
    }
    assert "teacher_sha256" not in records.deciding(dataset)


SECOND, QUICK = "vgg16-blockwise-cifar10-second.pth", "vgg16-blockwise-cifar100-quick.pth"


@pytest.mark.parametrize(
    ("file", "folder"),
    [(SECOND, "CIFAR10-second-teacher"), (SECOND, "CIFAR10-second-teacher-cpu"), (QUICK, "CIFAR100-quick")],
)
def test_a_committed_teacher_is_that_of_its_record_and_of_its_results(file, folder):
    path, found = ROOT / "ckpt/teacher" / file, results.read_all(ROOT / "benchmarks/results" / folder)
    record, dataset = records.of(path), found[0]["setting"]["dataset"]
    weights = checkpoints.weights_sha256(checkpoints.read_teacher(path, 10 if dataset == "CIFAR10" else 100))
    assert record["dataset"] == dataset and record["weights_sha256"] == weights
    assert record["sha256"] == files.sha256_of_file(path)
    assert {result["setting"]["teacher_sha256"] for result in found} == {weights}
    assert record["normalization"] == found[0]["setting"]["normalization"]
