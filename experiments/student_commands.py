"""The commands on files of students and teachers: --evaluate, --export, --predict. They return exit statuses."""

import json
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS, is_image_file

from data import fewshot
from data.pictures import find_files
from deployment import export as exporting
from deployment import formats
from deployment.evaluation import TEACHER, Candidate, compare, markdown
from deployment.networks import candidates, exported, is_plain_student_of, student_in, whole
from deployment.student import load
from experiments.job import Job
from grafting.students import is_plain_state
from grafting.teacher import FrozenTeacher
from models import checkpoints, records
from models.logits import logits_from
from models.networks import Networks
from utils import files, machine
from utils.errors import BadInput
from utils.precision import arithmetic
from utils.text import in_one_line

OR_FLAGS = ", or --student_width and --grafted are not the student's"
NO_PICTURE = f"no picture in this folder; pictures end in {', '.join(IMG_EXTENSIONS)}"
REPOSITORY = Path(__file__).resolve().parent.parent


def evaluate(job: Job) -> int:
    """Measure what is in a file, beside the teacher."""
    path, target = job.args.evaluate, job.args.json
    files.require_there(path)
    if target:
        _require_target(target, path, "networks")
    networks = _networks_in(path, job)
    job.report(f"{path}: measuring accuracy and speed on the test images")
    teacher_file = networks[0].file or job.teacher_file  # the teacher, where it is measured, is the first
    with arithmetic(job.args.precision, job.device), logits_from(path, teacher_file):
        figures = compare(networks, job.dataset)
    job.report(markdown(figures))
    if target:
        content = {"file": str(path), "machine": machine.description(job.device), "precision": job.args.precision}
        files.write_json(target, {**content, "networks": [asdict(row) for row in figures]})
    return 0


def _require_target(target: Path, path: Path, own: str) -> None:
    """Raise BadInput where --json would overwrite anything but its own file: one that holds "file" and `own`."""
    if target.absolute() == records.path_of(path).absolute():
        raise BadInput(f"--json {target}: is where the record of {path} belongs; name another file")
    if target.exists() and not files.read_json(target, "a file of --json; name another file").keys() >= {"file", own}:
        raise BadInput(f"--json {target}: exists already and is no file of --json; name another file")
    files.require_writable(target.parent, target.name)


def _networks_in(path: Path, job: Job) -> list[Candidate]:
    """The teacher and what is in the file. What needs no teacher is measured alone if its teacher is not there."""
    if job.args.teacher and not job.teacher_file.exists():
        raise BadInput(f"--teacher {job.teacher_file}: no such file; name the teacher's file")
    if formats.is_exported(path):
        network, header = formats.read(path)
        _require_dataset(path, header["dataset"], job)
        student = exported(path, network, header, job.dataset, job.device)
        return [*_teacher_of(path, lambda: job.teacher_sha256 == header["teacher_sha256"], "", job), student]
    kind, state = _read(path, job)
    if kind != "network":
        return candidates(kind, state, path, _recorded_teacher(kind, state, path, job), job.dataset)
    found = whole(state, path, job.pair, job.dataset, job.device)
    if not_checked := records.check(path, records.deciding(job.dataset)):
        job.report(not_checked)
    if found.name != TEACHER:
        if not job.pair.is_vgg:
            _require_networks(path, job.pair)
        return [
            *_teacher_of(path, lambda: is_plain_student_of(found.network.network, job.frozen_teacher()), OR_FLAGS, job),
            found,
        ]
    if job.args.teacher and not path.samefile(job.teacher_file):
        raise BadInput(f"--teacher {job.teacher_file}: {path} is a teacher itself; measure each alone")
    return [found]


def _teacher_of(path: Path, is_its: Callable[[], bool], other_reason: str, job: Job) -> list[Candidate]:
    """The command's teacher, if it is the one that the student in `path` was made with, as `is_its` says.

    Raises BadInput if the command names a file that is no teacher of this data set.
    """
    reason = "is not there"
    if job.teacher_file.exists():
        try:
            if is_its():
                teacher = exporting.OnRawImages(job.network, job.dataset.normalization)
                return [Candidate(TEACHER, teacher, job.teacher_file)]
            reason = f"is not its teacher{other_reason}"
        except BadInput:
            if job.args.teacher:
                raise
            reason = "cannot be read as a teacher of this data set"
    job.report(f"{path}: measured alone, since {job.teacher_file} {reason}; name its teacher with --teacher")
    return []


def _read(path: Path, job: Job) -> tuple[str, Any]:
    """What checkpoints.read gives, of a file that is not of another data set than the command's."""
    record = records.of(path) or {}
    _require_dataset(path, record.get("dataset") or records.setting_of(path).get("dataset"), job)
    kind, state = checkpoints.read(path, job.report)
    is_plain = kind == "stage 2" and not job.pair.is_vgg and is_plain_state(job.pair, state, job.dataset.classes)
    return "network" if is_plain else kind, state


def _require_dataset(path: Path, dataset: str | None, job: Job) -> None:
    """Raise BadInput, before anything is downloaded, for a file of another data set than the command names.

    Pictures in folders may be of any data set.
    """
    if dataset not in (None, job.name) and job.args.dataset != "Folder":
        advice = "Folder and the --data_path of its pictures" if dataset.startswith("Folder") else dataset
        raise BadInput(f"{path}: is of {dataset}; add --dataset {advice}")


def _require_networks(path: Path, networks: Networks) -> None:
    """Raise BadInput if the student's record names other networks than the command's flags."""
    theirs, ours = (records.of(path) or {}).get("networks"), networks.base_name
    if theirs not in (None, ours):
        raise BadInput(
            f"{path}: is a student of {theirs}, not {ours}; give --networks, --grafted and"
            " --student_width as it was made"
        )


def _recorded_teacher(kind: str, state: Any, path: Path, job: Job) -> FrozenTeacher:
    """The command's teacher. Raises BadInput if the student has other classes, or its record names another teacher."""
    if job.pair.is_vgg:
        checkpoints.require_classes(kind, state, path, job.dataset.classes)
    teacher = job.frozen_teacher()
    _require_networks(path, teacher.networks)
    if not_checked := records.check(path, records.deciding(job.dataset, job.teacher_sha256)):
        job.report(not_checked)
    return teacher


def export(job: Job) -> int:
    """Write a student as one file that needs no other."""
    path = job.args.export
    target = job.args.to or path.with_name(f"{path.stem}-exported.{'pt2' if job.pair.is_own else 'pth'}")
    files.require_there(path)
    if target.suffix == ".pth" and job.pair.is_own:
        raise BadInput(f"--to {target}: a .pth file of {job.pair.name} could not be loaded again; take .pt2 or .onnx")
    exporting.require_target(target, job.args.fresh)
    if formats.is_exported(path):
        raise BadInput(f"--export {path}: is exported already; name a student (...-net-...)")
    kind, state = _read(path, job)
    if kind == "stage 1":
        raise BadInput(f"--export {path}: holds the scions of stage 1; name a student (...-net-...)")
    teacher = _recorded_teacher(kind, state, path, job)
    student = student_in(kind, state, path, teacher)
    source = exporting.Source(teacher, student, job.dataset, _few_shot_images(path, job), files.sha256_of_file(path))
    job.report(f"{path}: matching the teacher's confidence, and comparing the written file with it on all test images")
    with logits_from(path, job.teacher_file):
        job.report(exporting.export(source, target))
    used = f'load({json.dumps(str(target.absolute()))}).predict(["PICTURE"])'
    python = f"from deployment.student import load; print({used})"
    job.report(f"use it: python train_fskd.py --predict {shlex.quote(str(target))} PICTURE")
    job.report(f"from any folder: PYTHONPATH={shlex.quote(str(REPOSITORY))} python -c {shlex.quote(python)}")
    return 0


def _few_shot_images(path: Path, job: Job) -> np.ndarray:
    """The images that a student has learned from, by its record, or else by its name and the command's subset seed.

    Raises BadInput where neither says it, or where the images in the folder are others than the recorded ones.
    """
    setting = records.setting_of(path)
    subset_seed = setting.get("subset_seed", job.subset_seed)
    if subset_seed != job.subset_seed and job.args.subset_seed is not None:
        raise BadInput(f"--subset_seed {job.subset_seed}: {path} was made with {subset_seed}; leave the flag out")
    named = re.search(r"-(\d{1,4})perclass", path.name)
    if not (setting or named):
        raise BadInput(f"{path}: neither record nor name says its number of shots; name it ...-<N>perclass...")
    shots = setting["shots"] if setting else int(named[1])
    few_shot = fewshot.subset(job.dataset, shots, subset_seed, job.args.data_path)
    if setting.get("subset_sha256") not in (None, files.sha256(few_shot)):
        raise BadInput(f"--export {path}: was made from other few-shot images; name its own folder with --data_path")
    return few_shot


def predict(job: Job) -> int:
    """Print the three most probable classes of each picture. Returns 1 if one of them cannot be read."""
    (student_file, *named), target = job.args.predict, job.args.json
    if not named:
        raise BadInput(f"--predict {student_file}: no picture; name pictures or folders behind it")
    if target:
        _require_target(target, student_file, "predictions")
    found = {path: _pictures_in(path) for path in named}
    empty = [f"{path}: {NO_PICTURE}" for path, pictures in found.items() if not pictures]
    if len(empty) == len(found):
        raise BadInput(empty[0])
    sys.stderr.writelines(f"train_fskd.py: {line}\n" for line in empty)
    student, predictions, unreadable = load(student_file), [], len(empty)
    pictures = [picture for path in named for picture in found[path]]
    with logits_from(student_file):
        for picture in pictures:
            try:
                (prediction,) = student.predict([picture])
                classes = (f"{in_one_line(name)} {100 * p:.1f}%" for name, p in prediction[:3])
                job.report(f"{in_one_line(picture)}: {', '.join(classes)}")
                predictions.append({"picture": str(picture), "probabilities": dict(prediction)})
            except BadInput as error:
                unreadable += 1
                sys.stderr.write(f"train_fskd.py: {error}\n")
    if target:
        files.write_json(target, {"file": str(student_file), "predictions": predictions})
    return 1 if unreadable else 0


def _pictures_in(path: Path) -> list[Path]:
    """The file itself, or the pictures below a folder, chosen as those of a class are (data/pictures.py)."""
    if not path.is_dir():
        return [path]
    return [file for file in find_files(path) if is_image_file(file.name)]
