"""The command line: every flag, every exit status, and the line that bad input gets."""

import json
import os
import pickle
import re
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import filelock
import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from small import CLASSES, TINY, overflowing, small_teacher

import train_fskd
from comparisons.methods import METHODS
from data.datasets import LabelledImages
from data.views import Normalization
from deployment import evaluation
from experiments import commands, diagnosis, job, teachers
from experiments.arguments import JOINS as JOIN_CHOICES
from experiments.arguments import METHOD_NAMES, READS
from grafting import recipes
from grafting.recipes import PUBLISHED_SHOTS
from grafting.stages import JOINS
from models import checkpoints, records
from models.vgg import BlockwiseVGG

CELL = ("--nshot", "1", "--trials", "1")
TEACHER = "ckpt/teacher/vgg16-blockwise-folder.pth"
STUDENT = "ckpt/student/vgg-student-graft-net-Tiny-1perclass-trial0.pth"


def command(*arguments):
    """The exit status."""
    try:
        return train_fskd.main(["--dataset", "Folder", *arguments])
    except SystemExit as stopped:  # by the parser of the command line
        return stopped.code


def accuracies(printed):
    """By network, in the table of --evaluate."""
    lines = [line.split("|")[1:-1] for line in printed.splitlines() if line.startswith("|")]
    column = [cell.strip() for cell in lines[0]].index("test %")
    return {line[0].strip(): line[column].strip() for line in lines[2:]}


def write_other_teacher(path):
    """One whose logits differ from the small teacher's by a constant."""
    other = small_teacher()
    other.classifier[2].bias.data += 1
    checkpoints.write_network(other, Path(path))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept") / "home"


@pytest.fixture
def with_student(with_teacher, kept):
    """With a teacher, and a cell that is done; it is run for the first test that asks for it, and copied for others."""
    if not kept.exists():
        assert command(*CELL) == 0
        shutil.copytree(with_teacher, kept)
    return shutil.copytree(kept, with_teacher, dirs_exist_ok=True)


def test_defaults():
    args = train_fskd.arguments([])
    assert (args.dataset, args.nshot, args.trials, args.seed) == ("CIFAR10", list(PUBLISHED_SHOTS), 5, 0)
    assert str(args.data_path) == "data/raw" and str(args.shard) == "1/1"
    assert args.precision == "tf32" and args.subset_seed is None and args.device is None and not args.fresh


def test_the_choices_are_those_of_the_method_and_every_flag_is_read():
    known = {flag for flags in READS.values() for flag in flags}
    assert known | {"dataset", "data_path", "command", *READS} - {""} == set(vars(train_fskd.arguments([])))
    assert tuple(JOINS) == JOIN_CHOICES
    assert set(METHODS) == {*METHOD_NAMES, "grafting-straight", "grafting-back"}


def test_help_shows_three_examples_and_every_default(capsys):
    with pytest.raises(SystemExit) as stop:
        train_fskd.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    description, *options = re.split(r"\n  (?=--)", text)
    examples = re.findall(r"^    python train_fskd.py (.*?)  ", description, re.M)
    assert len(examples) == 3 and all(train_fskd.arguments(example.split()) for example in examples)
    version, *options = options
    assert version.startswith("--version ")
    flags = [name for name in vars(train_fskd.arguments([])) if name != "command"]
    assert [option.split()[0] for option in options] == [f"--{flag}" for flag in flags]
    assert [option for option in options if "(default: " not in " ".join(option.split())] == []
    assert "(default: 0)" in text and "(default: off)" in text  # values, though they count as false


def test_the_version_is_printed_and_recorded(with_student, capsys):
    with pytest.raises(SystemExit) as stop:
        train_fskd.main(["--version"])
    assert stop.value.code == 0
    name, version = capsys.readouterr().out.split()
    assert name == "fskd" and re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert json.loads(Path("runs/Folder/results/1-shot/trial-0.json").read_text())["version"] == version


def test_help_and_wrong_arguments_do_not_wait_for_torch():
    code = (
        "import sys, train_fskd\n"
        "try: train_fskd.main(sys.argv[1:])\n"
        "except SystemExit: assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    for argument in ("--help", "--unknown"):
        subprocess.run([sys.executable, "-c", code, argument], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize(("number", "status", "word"), [(signal.SIGINT, 130, "interrupted"), (15, 143, "terminated")])
def test_interruption_while_modules_are_loaded(tmp_path, number, status, word):
    """A module that turns every exception into another one, as torch's C++ parts do."""
    (tmp_path / "torch.py").write_text(
        f"import signal\ntry: signal.raise_signal({int(number)})\nexcept BaseException: raise ImportError from None\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    job = [sys.executable, str(ROOT / "train_fskd.py"), "--table"]
    ended = subprocess.run(job, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (status, "")
    assert ended.stderr == f"train_fskd.py: {word}; nothing was begun\n"


def test_waiting_threads_sleep():
    """OpenMP says so itself when torch loads it."""
    environment = {**os.environ, "OMP_DISPLAY_ENV": "true"}
    environment.pop("OMP_WAIT_POLICY", None)
    job = [sys.executable, "-c", "import train_fskd, torch"]
    shown = subprocess.run(job, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stderr
    if "OMP_WAIT_POLICY" not in shown:
        pytest.skip("this OpenMP does not show its settings")
    assert re.search("OMP_WAIT_POLICY *= *'PASSIVE'", shown)


def test_sweep_table_and_evaluation(with_teacher, capsys):
    arguments = ("--nshot", "2", "1", "--trials", "1")
    assert command(*arguments) == 0
    printed = capsys.readouterr().out
    table = Path("runs/Folder/table.md").read_text()
    assert table in printed and Path("runs/Folder/table.csv").exists()
    assert command(*arguments) == 0
    assert "2 of 2 cells are done already" in capsys.readouterr().out
    Path("runs/Folder/table.md").unlink()
    shutil.rmtree("runs/Folder/tensorboard")
    assert command("--table") == 0
    assert len(list(Path("runs/Folder/tensorboard/cells").rglob("events.*"))) == 2
    written = "written in runs/Folder: table.md, table.csv, accuracy.png, accuracy.svg, tensorboard\n"
    assert capsys.readouterr().out == table + written and table == Path("runs/Folder/table.md").read_text()

    best, teacher = (table.splitlines()[2].split("|")[column].strip() for column in (2, 5))
    for file, networks in (
        (STUDENT, {"teacher": teacher, "student (L=3)": best, "student, folded": best}),
        (TEACHER, {"teacher": teacher}),
    ):
        assert command("--evaluate", file) == 0
        assert accuracies(capsys.readouterr().out) == networks
    assert command("--evaluate", STUDENT.replace("-net-", "-block-")) == 0
    assert list(accuracies(capsys.readouterr().out)) == ["teacher", "B0 alone", "B1 alone", "B2 alone"]


def test_output_and_student_dir(with_teacher):
    assert command(*CELL, "--output_dir", "elsewhere", "--student_dir", "pupils") == 0
    assert Path("elsewhere/results/1-shot/trial-0.json").exists()
    assert not Path("runs").exists()
    assert command(*CELL, "--output_dir", "another") == 0
    assert [len(list(Path(folder).glob("*.pth"))) for folder in ("pupils", "another/student")] == [3, 3]
    assert not Path("ckpt/student").exists()


def test_shards_divide_the_cells(with_teacher, capsys):
    assert command("--nshot", "1", "2", "--trials", "2", "--output_dir", "whole") == 0
    there, sizes = {}, []
    for index in "321":
        assert command("--nshot", "1", "2", "--trials", "2", "--output_dir", "parts", "--shard", f"{index}/3") == 0
        files = {path: path.stat().st_mtime_ns for path in with_teacher.glob("parts/results/*/trial-*.json")}
        assert there.items() <= files.items(), "a share wrote a result of another one"
        sizes.append(len(files) - len(there))
        there = files
    assert sizes == [1, 1, 2]
    whole, parts = (with_teacher / f"{name}/table.md" for name in ("whole", "parts"))
    assert whole.read_text() == parts.read_text() and whole.read_text() in capsys.readouterr().out
    assert command(*CELL, "--shard", "2/2") == 0
    assert "no results yet; there is no cell in --shard 2/2" in capsys.readouterr().out


def test_diagnose(with_teacher, capsys, monkeypatch):
    monkeypatch.setattr(diagnosis, "POOR", -100.0)  # every teacher is poor,
    monkeypatch.setattr(diagnosis, "FOREIGN", 100.0)  # and of these data
    assert command("--diagnose", "--data_path", "other") == 0  # the smallest class has four pictures
    printed = capsys.readouterr().out
    assert "12 few-shot images (N = 4)" in printed
    assert [line.split("|")[1].strip() for line in printed.splitlines() if line.startswith("|")][2:] == list("01234")
    assert "The teacher itself: " in printed
    further = f"--train_teacher --teacher_from {TEACHER} --teacher {TEACHER[:-4]}-graftable.pth"
    assert printed.endswith(f"  python train_fskd.py --dataset Folder --data_path other {further}\n")


@pytest.mark.parametrize("recipe_name", ["published", "quick"])
def test_train_teacher(at_home, capsys, recipe_name):
    assert command(
        "--train_teacher", "--teacher_recipe", recipe_name, "--teacher_epochs", "1",
        "--networks", "vgg11-small", "--teacher", "mine.pth", "--seed", "3",
    ) == 0  # fmt: skip
    assert "mine.pth: teacher of recipe " + recipe_name in capsys.readouterr().out
    assert checkpoints.read_teacher(at_home / "mine.pth", CLASSES).architecture.widths[0] == (16,)
    assert '"seed": 3' in (at_home / "mine.json").read_text()
    assert list((at_home / "runs/Folder/tensorboard/teacher/mine").glob("events.*"))


def test_a_teacher_that_only_guesses_is_exit_status_1(at_home, monkeypatch, capsys):
    monkeypatch.setattr(teachers, "like_guessing", lambda *_: "mine.pth: is no better than guessing; add images")
    new = "--networks", "vgg11-small", "--teacher", "mine.pth", "--teacher_epochs", "1"
    assert command("--train_teacher", "--teacher_recipe", "quick", *new) == 1
    assert capsys.readouterr().err == "train_fskd.py: mine.pth: is no better than guessing; add images\n"
    assert Path("mine.pth").exists()


def test_where_tensorboard_cannot_be_written_a_teacher_is_trained(at_home, capsys):
    (at_home / "runs/Folder").mkdir(parents=True)
    (at_home / "runs/Folder/tensorboard").write_text("no folder")
    quick = ["--teacher_recipe", "quick", "--teacher_epochs", "2", "--networks", "vgg11-small"]
    assert command("--train_teacher", *quick, "--teacher", "mine.pth") == 0
    shown = capsys.readouterr()
    assert shown.out.count("TensorBoard's files cannot be written (") == 1 and "Traceback" not in shown.err
    assert len(json.loads((at_home / "mine.json").read_text())["epochs"]) == 2


def test_a_teacher_is_made_graftable(with_teacher, capsys):
    assert command("--train_teacher", "--teacher_from", TEACHER, "--teacher", "b.pth", "--teacher_epochs", "0") == 0
    printed = capsys.readouterr().out
    assert "block 2's output is multiplied by " in printed and "b.pth: teacher of recipe further" in printed
    assert command("--evaluate", TEACHER) == command("--evaluate", "b.pth") == 0
    first, second = capsys.readouterr().out.split("b.pth: measuring")
    assert accuracies(first) == accuracies(second)
    further = ["--teacher_epochs", "1", "--teacher_prototypes", "3"]
    assert command("--train_teacher", "--teacher_from", TEACHER, "--teacher", "c.pth", *further) == 0
    assert json.loads(Path("c.json").read_text())["recipe"]["prototype_head"] == 3


def test_build_dataset(official_files, capsys):
    for spelling in (["--build_dataset", "True"], ["--build_dataset"]):
        assert train_fskd.main([*spelling, "--data_path", str(official_files)]) == 0
        assert capsys.readouterr().out.count(" images, sha256 ") == 24
    names = {f"{name}-random-{shots}-per-class.pkl" for name in ("cifar10", "cifar100") for shots in PUBLISHED_SHOTS}
    assert names == {path.name for path in official_files.glob("*.pkl")}


def test_subset_seed(with_student):
    assert command(*CELL, "--subset_seed", "7", "--output_dir", "seven") == 0
    files = (Path(folder, "results/1-shot/trial-0.json") for folder in ("runs/Folder", "seven"))
    released, seven = (json.loads(file.read_text())["setting"] for file in files)
    assert (released["subset_seed"], seven["subset_seed"]) == (6, 7)
    assert released["subset_sha256"] != seven["subset_sha256"]


OF_TEACHER = {  # with --train_teacher
    "--teacher_from a.pth --teacher_recipe quick": "--teacher_recipe: --teacher_from has a recipe",
    "--teacher_epochs 0": "--teacher_epochs 0: only with --teacher_from",
    "--teacher_prototypes 2": "--teacher_prototypes: only with --teacher_recipe quick, or",
    "--teacher_from a --teacher_epochs 0 --teacher_prototypes 2": "--teacher_prototypes: ",
    "--teacher_from a.pth --networks vgg11": "--networks: the file of",
    "--teacher_from missing.pth --teacher b.pth": "missing.pth: no such file",
    "--teacher_from b.pth --teacher b.pth": "--teacher_from b.pth: --teacher is the same file",
    "--teacher new.pth --output_dir empty.pth": "empty.pth: cannot be written",
    f"--teacher {'x' * 236}.pth": "x.resume.pt: cannot be written (File name too long); shorten it",
    "--precision float32": "--precision: not with --train_teacher",
}
REFUSED = {f"--train_teacher {arguments}": line for arguments, line in OF_TEACHER.items()} | {
    # a flag that the command would ignore
    "--nshot 1 --teacher_from a.pth": "--teacher_from: only with --train_teacher",
    "--teacher_recipe quick": "--teacher_recipe: only with --train_teacher",
    "--teacher_epochs 0": "--teacher_epochs: only with --train_teacher",
    "--table --seed 1": "--seed: not with --table",
    "--diagnose --method kd": "--method: not with --diagnose",
    "--evaluate a.pth --fresh": "--fresh: not with --evaluate",
    "--predict a.pth b.jpg --device cpu": "--device: not with --predict",
    "--predict a.pth b.jpg": "--dataset: not with --predict",
    "--build_dataset --nshot 1": "--nshot: not with --build_dataset",
    "--to x.pth": "--to: only with --export",
    "--json x.json": "--json: only with --evaluate or --predict",
    "--dataset Shapes10 --data_path mine": "--data_path: not with --dataset Shapes10, whose",
    "--build_dataset": "--build_dataset: writes the files of both CIFARs; Folder needs none",
    "--teacher good.pth --method fskd --best_of 1": "not with --method fskd",
    "--teacher good.pth --method fskd --eval_every 1": "not with --method fskd",
    # no such value
    "--dataset MNIST": "invalid choice: 'MNIST'",
    "--nshot 0": "argument --nshot: '0' is not a whole number from 1 on",
    "--trials -1": "argument --trials: '-1' is not a whole number from 1 on",
    "--seed -1": "argument --seed: '-1' is not a whole number from 0 on",
    "--build_dataset maybe": "argument --build_dataset: 'maybe' is neither True nor False",
    "--shard 3/2": "argument --shard: '3/2' is not I/K",
    "--output_dir caf\udce9": "argument --output_dir: 'caf\\udce9' is not UTF-8",
    "--unknown": "unrecognized arguments: --unknown",
    "--json ''": "argument --json: the name is empty; give one",
    "--data_path ~nosuchuser/pics": "argument --data_path: '~nosuchuser/pics'",
    "--table --diagnose": "not allowed with argument",
    "--device abacus": "--device abacus: ",
    "--device cuda:99": "--device cuda:99: ",
    # no such file, or one that is something else
    "--table": "runs/Folder/results: no results found",
    f"--table --output_dir {'x' * 300}": "File name too long",
    "": "train one: python train_fskd.py --dataset Folder --train_teacher --teacher_recipe quick",
    "--networks vgg11": "one: python train_fskd.py --dataset Folder --networks vgg11 --train",
    "--teacher missing.pth": "missing.pth: no such teacher; train one: python train_fskd.py --dataset Folder --teacher"
    " missing.pth --train_teacher --teacher_recipe quick",
    "--teacher .": ".: is a directory; expected a checkpoint",
    "--teacher empty.pth": "empty.pth: not a checkpoint, or damaged",
    "--teacher ten.pth": "ten.pth: has 10 classes, the data set 3",
    "--evaluate empty.pth": "empty.pth: not a checkpoint, or damaged",
    "--evaluate no/student.pth --json other/figures.json": "no/student.pth: no such file",
    "--export no/student.pth": "no/student.pth: no such file",
    "--evaluate array.pkl": "array.pkl: ",
    "--evaluate layout.pth --teacher good.pth": "layout.pth: ",
    "--teacher good.pth --nshot 5": "class 'a' has only 4 training images; give at most",
    "--teacher good.pth --nshot 1 --output_dir empty.pth": "cannot be written",
    f"--teacher good.pth --nshot 1 --output_dir {'x' * 300}": "File name too long; shorten it",
    f"--evaluate good.pth --json {'x' * 245}.json": "x.json: cannot be written (File name too long); shorten it",
    f"--export good.pth --to {'x' * 245}.pth": "x.pth: cannot be written (File name too long); shorten it",
}


@pytest.mark.parametrize("arguments", REFUSED, ids=ascii)
def test_bad_input_is_one_line_and_leaves_nothing(at_home, capsys, arguments):
    Path("empty.pth").touch()
    Path("array.pkl").write_bytes(pickle.dumps(np.zeros(3)))
    torch.save({"0.0.0.weight": torch.zeros(3)}, "layout.pth")
    checkpoints.write_network(small_teacher(), Path("good.pth"))
    checkpoints.write_network(BlockwiseVGG(TINY, 10), Path("ten.pth"))
    before, trains = sorted(at_home.rglob("*")), "--train_teacher" in arguments
    assert command(*shlex.split(arguments)) == 2
    error = capsys.readouterr().err
    assert REFUSED[arguments] in error and error.startswith("train_fskd.py: ") and error.count("\n") == 1
    left = (path for path in at_home.rglob("*") if path.suffix != ".lock" and not (trains and path.is_dir()))
    assert sorted(left) == before


def test_a_missing_teacher_is_obtained_only_at_its_default_path(at_home, monkeypatch, recipe, capsys):
    """A mistyped --teacher is neither trained nor fetched, and no other architecture takes the name."""
    got = []
    monkeypatch.setattr(teachers, "fetch_teacher", lambda *_, **__: got.append("fetched"))
    monkeypatch.setattr(teachers, "train", lambda *_, **__: got.append("trained"))
    for kind in ({"trains_own_teacher": True}, {"published": {1: (90.74, 0.49)}}):
        monkeypatch.setitem(recipes.RECIPES, "Folder", replace(recipe, **kind))
        for arguments in (["--teacher", "typo.pth"], ["--networks", "vgg11"]):
            assert command("--nshot", "1", *arguments) == 2
            assert "no such teacher" in capsys.readouterr().err and got == []
        assert command("--nshot", "1") == 2  # the replaced functions write no file
        assert got.pop() == ("trained" if "trains_own_teacher" in kind else "fetched")
        assert f"{TEACHER}: missing; " in capsys.readouterr().out


def test_an_own_teacher_whose_record_was_not_finished_is_completed(with_teacher, monkeypatch, recipe, capsys):
    """The power was cut between the teacher's file and its record."""
    completed = []
    monkeypatch.setitem(recipes.RECIPES, "Folder", replace(recipe, trains_own_teacher=True))
    monkeypatch.setattr(teachers.TeacherTraining, "run", lambda *_: completed.append(True) or 90.0)
    records.announce(Path(TEACHER), {})
    assert command("--diagnose", "--nshot", "1") == 0 and completed == [True]
    assert f"{TEACHER}: not finished; it is trained first" in capsys.readouterr().out
    records.write(Path(TEACHER), {})
    assert command("--diagnose", "--nshot", "1") == 0 and completed == [True]


def test_a_missing_teacher_names_the_existing_ones(at_home, teacher, capsys):
    for name in ("folder", "folder-quick", "folders", "other"):
        name = f"vgg11-small-blockwise-{name}.pth"
        checkpoints.write_network(teacher, at_home / "ckpt/teacher" / name)
    assert command("--nshot", "1") == 2
    first, second = (f"ckpt/teacher/vgg11-small-blockwise-{name}.pth" for name in ("folder-quick", "folder"))
    assert capsys.readouterr().err.endswith(f"no such teacher; name one with --teacher: {first}, {second}\n")


def test_a_teachers_record_replaces_no_other_file(at_home, capsys):
    Path("mine.json").write_text('{"my": "notes"}')
    training = "--train_teacher", "--teacher_epochs", "1", "--networks", "vgg11-small"
    assert command(*training, "--teacher", "mine.pth") == 2
    assert "mine.json: exists already and is no record of a network; name another" in capsys.readouterr().err
    assert Path("mine.json").read_text() == '{"my": "notes"}'


def test_a_vgg_at_another_image_size(tmp_path, monkeypatch, recipe, capsys):
    """It is folded and exported, it is measured at its own size only, and N of other pictures are not mixed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(recipes.RECIPES, "Folder", recipe)
    checkpoints.write_network(BlockwiseVGG(TINY, 2), Path("t.pth"))
    random = np.random.default_rng(0)

    def add_pictures(part, count):
        for name in "ab":
            folder = Path("p", part, name)
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = random.integers(256, size=(48, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{len(list(folder.iterdir()))}-{number}.png")

    add_pictures("train", 3)
    add_pictures("test", 5)
    flags = "--data_path", "p", "--teacher", "t.pth", "--device", "cpu"
    at_48 = *flags, "--image_size", "48"
    assert command(*at_48, *CELL) == 0
    (student,) = Path("ckpt/student").glob("*-net-*-trial0.pth")
    assert command(*at_48, "--export", str(student), "--to", "s.pth") == 0
    assert command(*at_48, "--evaluate", "s.pth") == 0
    capsys.readouterr()
    assert command(*flags, "--evaluate", "s.pth") == 2
    assert "s.pth: is for images of 48 pixels, not 32; add --image_size 48" in capsys.readouterr().err
    subsets = *at_48, *CELL, "--output_dir", "of_subsets", "--subset_seeds", "1", "2", "3", "4"
    assert command(*subsets) == 0, capsys.readouterr().err
    add_pictures("train", 3)
    assert command(*at_48, "--nshot", "2", "--trials", "1") == 2
    assert "first images sha256" in capsys.readouterr().err


def test_a_teacher_is_not_overwritten_without_fresh(with_teacher, capsys):
    before, curves = Path(TEACHER).read_bytes(), Path("runs/Folder/tensorboard/teacher", Path(TEACHER).stem, "events.x")
    curves.parent.mkdir(parents=True)
    curves.touch()
    training = "--train_teacher", "--teacher_epochs", "1", "--networks", "vgg11-small", "--teacher", TEACHER
    assert command(*training) == 2
    assert f"{TEACHER}: a teacher exists already; --fresh trains it again" in capsys.readouterr().err
    assert Path(TEACHER).read_bytes() == before and curves.exists()
    assert command(*training, "--fresh") == 0
    assert Path(TEACHER).read_bytes() != before and not curves.exists()


def test_the_table_is_that_of_the_results_data_set(with_student, capsys):
    """Without --dataset, the paper's column belongs to the data set in the results."""
    assert train_fskd.main(["--table", "--output_dir", "runs/Folder"]) == 0
    assert "90.74" not in capsys.readouterr().out
    path = Path("runs/Folder/results/1-shot/trial-0.json")
    path.write_text(path.read_text().replace('"dataset": "Tiny"', '"dataset": "CIFAR100"'))
    assert train_fskd.main(["--table", "--output_dir", "runs/Folder"]) == 0
    assert "64.22" not in capsys.readouterr().out  # the paper's networks are others
    path.write_text(path.read_text().replace('"networks": "vgg"', '"networks": "vgg16"'))
    assert train_fskd.main(["--table", "--output_dir", "runs/Folder"]) == 0
    printed = capsys.readouterr().out
    assert "64.22 ± 0.17" in printed and "90.74" not in printed


def test_a_teacher_that_is_not_the_recorded_one_is_said(with_teacher, capsys):
    Path(TEACHER).with_suffix(".json").write_text('{"sha256": "of another file"}')
    assert command(*CELL) == 0
    assert "vgg16-blockwise-folder.json is the record of another file; not checked" in capsys.readouterr().out


def test_a_student_is_exported_measured_and_used(with_student, dataset, capsys):
    exported = STUDENT.replace(".pth", "-exported.pth")
    assert command("--export", STUDENT) == 0
    assert command("--export", STUDENT, "--to", "student.pt2") == 0
    assert capsys.readouterr().out.count("the same predictions on 20 test images") == 2
    Image.fromarray(dataset.test().images[0].transpose(1, 2, 0)).save("picture.png")
    Path("no.png").write_text("no picture")
    for file in (exported, "student.pt2"):
        assert command("--evaluate", file, "--json", "figures.json", "--device", "cpu") == 0
        written = json.loads(Path("figures.json").read_text())
        assert [row["name"] for row in written["networks"]] == ["teacher", "student, exported"]
        assert (written["file"], written["machine"]["device_type"], written["precision"]) == (file, "cpu", "tf32")
        capsys.readouterr()
        assert train_fskd.main(["--predict", file, "picture.png"]) == 0
        assert re.fullmatch(r"picture.png: [abc] [\d.]+%, [abc] [\d.]+%, [abc] [\d.]+%\n", capsys.readouterr().out)
    Path("empty").mkdir()
    assert train_fskd.main(["--predict", exported, "no.png", "empty", "picture.png"]) == 1
    shown = capsys.readouterr()
    assert "no.png: cannot be read as a picture" in shown.err and "picture.png: " in shown.out
    assert "empty: no picture in this folder" in shown.err
    Path("album/below").mkdir(parents=True)
    for name in ("no.png", "below/a.png", "notes.txt"):
        shutil.copy("picture.png" if name == "below/a.png" else "no.png", Path("album", name))
    assert train_fskd.main(["--predict", exported, "album", "picture.png", "--json", "predictions.json"]) == 1
    shown, written = capsys.readouterr(), json.loads(Path("predictions.json").read_text())
    assert "album/no.png: cannot be read" in shown.err and "notes" not in shown.err and shown.out.count("\n") == 2
    assert written["file"] == exported
    assert [one["picture"] for one in written["predictions"]] == ["album/below/a.png", "picture.png"]
    probabilities = written["predictions"][0]["probabilities"]
    assert {*probabilities} == set("abc") and sum(probabilities.values()) == pytest.approx(1, abs=1e-5)

    its_teacher = Path(TEACHER)
    checkpoints.write_network(checkpoints.read_teacher(its_teacher, 3), its_teacher)  # another file, the same teacher
    assert command("--evaluate", exported) == 0
    assert "measured alone" not in capsys.readouterr().out
    write_other_teacher("other.pth")
    Path("damaged.pth").write_text("damaged")
    for instead, reason in (
        ("other.pth", "is not its teacher"),
        ("damaged.pth", "cannot be read as a teacher of this data set"),
        (None, "is not there"),
    ):  # it is no longer needed
        its_teacher.unlink()
        if instead:
            shutil.copy(instead, its_teacher)
        assert train_fskd.main(["--predict", exported, "picture.png"]) == 0
        assert command("--evaluate", exported) == 0
        assert f"measured alone, since {its_teacher} {reason}" in capsys.readouterr().out
    assert command("--evaluate", exported, "--teacher", "damaged.pth") == 2
    assert "damaged.pth: not a checkpoint, or damaged" in capsys.readouterr().err


def test_the_line_behind_an_export_works_from_any_folder(with_student, dataset, tmp_path, capsys):
    """Also beside folders that are named as those of the repository, but are no Python packages."""
    assert command("--export", STUDENT) == 0
    (line,) = re.findall("^from any folder: (.*)$", capsys.readouterr().out, re.M)
    elsewhere = tmp_path / "else where"
    for name in ("data", "models", "utils"):
        (elsewhere / name).mkdir(parents=True)
    Image.fromarray(dataset.test().images[0].transpose(1, 2, 0)).save(elsewhere / "picture.png")
    line = line.replace("python -c", f"{shlex.quote(sys.executable)} -c").replace("PICTURE", "picture.png")
    printed = subprocess.run(line, shell=True, cwd=elsewhere, capture_output=True, text=True, check=True).stdout
    assert re.match(r"\[\[\('[abc]', [\d.]+\), ", printed)


MISUSED = {
    f"--export {STUDENT} --teacher other.pth": f"{STUDENT}: was made with another teacher",
    f"--evaluate {STUDENT} --teacher other.pth": f"{STUDENT}: was made with another teacher",
    f"--evaluate {STUDENT} --teacher missing.pth": "--teacher missing.pth: no such file",
    f"--export {TEACHER}": "is no student of this teacher",
    f"--export {STUDENT} --to {STUDENT}": f"--to {STUDENT}: exists already and is no exported student",
    f"--export {STUDENT} --subset_seed 3": f"--subset_seed 3: {STUDENT} was made with 6; leave the flag out",
    f"--evaluate {STUDENT} --json {STUDENT}": f"{STUDENT}: not a file of --json, or damaged",
    f"--evaluate {STUDENT} --json runs/Folder/results/1-shot/trial-0.json": "exists already and is no file of --json",
    f"--evaluate {STUDENT} --json {STUDENT[:-4]}.json": f"is where the record of {STUDENT} belongs; name",
    f"--predict {STUDENT}": f"--predict {STUDENT}: no picture",
    f"--predict {STUDENT} x.png": f"{STUDENT}: not an exported student",
    f"--predict {STUDENT} ckpt": "ckpt: no picture in this folder; pictures end in .jpg,",
    f"--predict {STUDENT} x.png --json {STUDENT}": f"{STUDENT}: not a file of --json, or damaged",
    f"--predict {STUDENT} x.png --json figures.json": "figures.json: exists already and is no file of --json",
}


@pytest.mark.parametrize("arguments", MISUSED)
def test_what_a_student_cannot_be_used_for_is_one_line(with_student, capsys, arguments):
    write_other_teacher("other.pth")
    Path("figures.json").write_text('{"file": "a.pth", "networks": []}')  # of --evaluate
    dataset = [] if "--predict" in arguments else ["--dataset", "Folder"]
    assert train_fskd.main([*dataset, *shlex.split(arguments)]) == 2
    assert MISUSED[arguments] in (line := capsys.readouterr().err) and line.count("\n") == 1


def test_a_student_is_used_only_with_its_own_data(with_student, dataset, monkeypatch, capsys):
    """The pictures of a folder may have changed since: those that calibration uses, and the normalisation."""
    train = LabelledImages(dataset.train().images[::-1].copy(), dataset.train().labels[::-1].copy())
    other = Normalization((0.5, 0.4, 0.5), (0.2, 0.25, 0.3))
    for changed, flag, line in (
        (replace(dataset, normalization=other), "--evaluate", "was made with another normalisation"),
        (replace(dataset, train=lambda: train), "--export", "was made from other few-shot images"),
    ):
        monkeypatch.setattr(job, "open_dataset", lambda name, path, changed=changed, **_: changed)
        assert command(flag, STUDENT) == 2
        assert line in capsys.readouterr().err


def test_a_named_teacher_is_measured_beside_its_student_without_a_record(with_teacher, capsys):
    assert command("--method", "kd", *CELL) == 0
    student = Path("ckpt/student/vgg-student-kd-net-Tiny-1perclass-trial0.pth")
    student.with_suffix(".json").unlink()
    Path("damaged.pth").write_text("damaged")
    capsys.readouterr()
    assert command("--evaluate", str(student), "--teacher", TEACHER) == 0
    assert list(accuracies(capsys.readouterr().out)) == ["teacher", "student without adapters"]
    assert command("--evaluate", TEACHER, "--teacher", TEACHER) == 0
    assert list(accuracies(capsys.readouterr().out)) == ["teacher"]
    other = small_teacher()
    other.features[0][0].bias.data += 1
    checkpoints.write_network(other, Path("other.pth"))
    assert command("--evaluate", str(student), "--teacher", "other.pth") == 0
    assert "measured alone, since other.pth is not its teacher" in capsys.readouterr().out
    assert command("--evaluate", TEACHER, "--teacher", "other.pth") == 2
    assert "is a teacher itself; measure each alone" in capsys.readouterr().err
    assert command("--evaluate", str(student), "--teacher", "damaged.pth") == 2
    assert "damaged.pth: not a checkpoint, or damaged" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["block", "net"])
def test_a_student_of_another_number_of_classes_names_the_flag(with_student, dataset, monkeypatch, capsys, kind):
    """A file without a record, as the released ones; nothing is fetched for it."""
    shutil.copy(STUDENT.replace("-net-", f"-{kind}-"), "student.pth")
    monkeypatch.setattr(job, "open_dataset", lambda name, path, **_: replace(dataset, classes=5))
    monkeypatch.setattr(job.Job, "frozen_teacher", lambda self: pytest.fail("the teacher was read"))
    for flag in ("--evaluate", *(["--export"] if kind == "net" else [])):
        assert command(flag, "student.pth") == 2
        assert "student.pth: has 3 classes, the data set 5; name its --dataset" in capsys.readouterr().err


def test_a_file_of_another_data_set_is_refused_before_anything_is_fetched(with_student, monkeypatch, capsys):
    """A forgotten --dataset, whose default is CIFAR10."""
    assert command("--export", STUDENT, "--to", "student.pth") == 0
    monkeypatch.setitem(recipes.RECIPES, "Tiny", recipes.RECIPES["Folder"])
    for arguments in (["--evaluate", "student.pth"], ["--evaluate", STUDENT], ["--export", STUDENT]):
        assert train_fskd.main(arguments) == 2
        assert "is of Tiny; add --dataset Tiny" in capsys.readouterr().err
    record = Path(STUDENT).with_suffix(".json")
    record.write_text(record.read_text().replace('"dataset": "Tiny"', '"dataset": "Folder-pets"'))
    assert train_fskd.main(["--evaluate", STUDENT]) == 2
    assert "is of Folder-pets; add --dataset Folder and the --data_path" in capsys.readouterr().err


@pytest.mark.parametrize("grafted", ["3-5", "1-4"])
@pytest.mark.parametrize("start", ["fresh", "teacher"])
def test_students_of_other_sizes_say_how_to_use_them(with_teacher, capsys, grafted, start):
    size = ["--grafted", grafted, "--student_width", "0.25"]
    assert command(*size, "--start", start, "--nshot", "1", "--trials", "1") == 0
    printed = capsys.readouterr().out
    compare, use = (
        printed.partition(f"{purpose}: python train_fskd.py ")[2].splitlines()[0]
        for purpose in ("compare one with its teacher", "use one")
    )
    assert "-width0.25-" in use and "--student_width 0.25" in use and "--student_width 0.25" in compare
    assert train_fskd.main(shlex.split(compare)) == 0
    found = accuracies(capsys.readouterr().out)
    assert len(found) == 3 and found["student, folded"] == list(found.values())[1]
    assert train_fskd.main(shlex.split(use)) == 0
    assert "the same predictions on 20 test images" in capsys.readouterr().out
    without = [word for word in shlex.split(compare) if word not in ("--student_width", "0.25")]
    assert train_fskd.main(without) == 2
    assert "give --networks, --grafted and --student_width as it was made" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["whole", "kd", "fskd"])
def test_other_methods_say_how_to_use_their_students(with_teacher, capsys, method):
    """Without adapters, a student has a teacher's layout; it is measured beside the teacher all the same."""
    assert command("--method", method, "--nshot", "1", "--trials", "2") == 0
    printed = capsys.readouterr().out
    assert printed.count(": best ") == (1 if method == "fskd" else 2), "what draws nothing has one trial"
    compare, use = (
        printed.partition(f"{purpose}: python train_fskd.py ")[2].splitlines()[0]
        for purpose in ("compare one with its teacher", "use one")
    )
    assert train_fskd.main(shlex.split(compare)) == 0
    names = list(accuracies(capsys.readouterr().out))
    assert names[0] == "teacher" and len(names) == (3 if method == "whole" else 2)
    assert train_fskd.main(shlex.split(use)) == 0
    assert "the same predictions on 20 test images" in capsys.readouterr().out
    if method == "kd":
        Path(TEACHER).unlink()
        assert train_fskd.main(shlex.split(compare)) == 0
        printed = capsys.readouterr().out
        assert "measured alone" in printed
        assert list(accuracies(printed)) == ["student without adapters"]


def test_a_released_student_is_measured_and_the_missing_checks_are_named(with_student, capsys):
    Path(STUDENT).with_suffix(".json").unlink()
    assert command("--evaluate", STUDENT) == 0
    printed = capsys.readouterr().out
    assert "has no record beside it; not checked: teacher, image size, class names, normalisation" in printed
    assert "student (L=3)" in accuracies(printed)


OVERFLOWING = {
    "--evaluate broken-teacher.pth --json figures.json": "broken-teacher.pth",
    "--evaluate broken-1perclass.pth": "broken-1perclass.pth",
    f"--evaluate {STUDENT} --teacher broken-teacher.pth": "broken-teacher.pth",
    "--export broken-1perclass.pth --to new.pth": "broken-1perclass.pth",
    f"--export {STUDENT} --teacher broken-teacher.pth --to new.pth": "broken-teacher.pth",
    "--diagnose --nshot 1 --teacher broken-teacher.pth": "broken-teacher.pth",
    "--nshot 1 --trials 1 --teacher broken-teacher.pth --output_dir new": "broken-teacher.pth",
    "--predict broken-exported.pth picture.png picture.png": "broken-exported.pth",
}


@pytest.mark.parametrize("arguments", OVERFLOWING)
def test_a_network_whose_logits_are_not_finite_is_named(with_student, teacher, dataset, capsys, arguments):
    if "--predict" in arguments:
        assert command("--export", STUDENT, "--to", "broken-exported.pth") == 0
        content = torch.load("broken-exported.pth", weights_only=True)
        for name in ("linear.weight", "blocks.3.0.weight"):
            content["weights"][name] *= 1e30
        torch.save(content, "broken-exported.pth")
    checkpoints.write_network(overflowing(teacher), Path("broken-teacher.pth"))
    state = torch.load(STUDENT, weights_only=True)
    torch.save({name: 1e25 * value for name, value in state.items()}, "broken-1perclass.pth")
    Path(STUDENT).with_suffix(".json").unlink()  # it would refuse another teacher first
    Image.fromarray(dataset.test().images[0].transpose(1, 2, 0)).save("picture.png")
    before = sorted(Path().rglob("*.*"))
    capsys.readouterr()
    flags = [] if "--predict" in arguments else ["--dataset", "Folder"]
    assert train_fskd.main([*flags, *shlex.split(arguments)]) == 2
    line = capsys.readouterr().err
    assert f"{OVERFLOWING[arguments]}: its logits are not finite" in line and line.count("\n") == 1
    assert sorted(path for path in Path().rglob("*.*") if "new" not in path.parts) == before


def test_files_of_other_programs_are_used(with_student, monkeypatch, capsys):
    """A teacher and a student from training checkpoints."""
    monkeypatch.setattr(evaluation, "ROUNDS", {1: 1, 256: 1})
    checkpoint = Path("checkpoint-1perclass.pth"), Path("mine.pth")
    for source, path in zip((STUDENT, TEACHER), checkpoint, strict=True):
        state = {f"module.{name}": value for name, value in torch.load(source, weights_only=True).items()}
        torch.save({"model": state, "epoch": 90}, path)
    student, its_teacher = map(str, checkpoint)
    around = "state_dict in key 'model', names without 'module.'"
    for flags, read in (
        (("--evaluate", student, "--teacher", its_teacher), [student, its_teacher]),
        (("--export", student, "--teacher", its_teacher, "--to", "new.pth"), [student, its_teacher]),
        (
            ("--train_teacher", "--teacher_from", its_teacher, "--teacher_epochs", "0", "--teacher", "t.pth"),
            [its_teacher],
        ),
    ):
        assert command(*flags) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line for line in lines if "state_dict" in line] == [f"{path}: {around}" for path in read]


@pytest.mark.parametrize("arguments", [("--evaluate", TEACHER), ("--diagnose", "--nshot", "4")])
def test_evaluation_and_diagnosis_compute_in_the_precision_asked_for(with_teacher, monkeypatch, arguments):
    dtypes, convolve = set(), torch.nn.Conv2d._conv_forward

    def recording(self, images, weight, bias):
        output = convolve(self, images, weight, bias)
        dtypes.add(output.dtype)
        return output

    monkeypatch.setattr(torch.nn.Conv2d, "_conv_forward", recording)
    for precision in ("float32", "bfloat16"):
        dtypes.clear()
        assert command(*arguments, "--precision", precision, "--device", "cpu") == 0
        assert dtypes == {getattr(torch, precision)}


def test_a_failed_cell_is_exit_status_1(with_teacher, monkeypatch, capsys):
    monkeypatch.setattr("grafting.distillation.distance", lambda s, t: (s * float("nan")).sum())
    assert command(*CELL) == 1
    assert "failed: the loss, a test logit or a weight is not finite in B0, epoch 1" in capsys.readouterr().out
    assert command("--table") == 1


@pytest.mark.parametrize(("number", "status", "word"), [(signal.SIGINT, 130, "interrupted"), (15, 143, "terminated")])
def test_interruption(with_teacher, monkeypatch, capsys, number, status, word):
    monkeypatch.setattr("grafting.distillation.distance", lambda *_: signal.raise_signal(number))
    for flags, same in (([], "the same command"), (["--fresh"], "the same command without --fresh")):
        assert command(*CELL, *flags) == status
        line = f"train_fskd.py: {word}; cells done in runs/Folder: 0; {same} goes on where it stopped\n"
        assert capsys.readouterr().err == line


@pytest.mark.slow
@pytest.mark.parametrize(("name", "accuracy"), [("cifar10", "91.58"), ("cifar100", "67.58")])
def test_teacher_files_have_the_recorded_accuracy(real_data, real_teachers, capsys, name, accuracy):
    teacher = real_teachers / f"vgg16-blockwise-{name}.pth"
    arguments = ["--dataset", name.upper(), "--data_path", str(real_data(name.upper())), "--evaluate", str(teacher)]
    assert train_fskd.main(arguments) == 0
    assert accuracies(capsys.readouterr().out) == {"teacher": accuracy}


@pytest.mark.slow
def test_shapes10_from_end_to_end(tmp_path):
    """The README's offline main job: a teacher of 90% or more, and more shots help."""
    student = "ckpt/student/vgg11-small-student-graft-net-Shapes10-10perclass-trial0.pth"
    for arguments in (
        ["--dataset", "Shapes10", "--nshot", "1", "5", "10", "--trials", "1"],
        ["--dataset", "Shapes10", "--export", student, "--to", "student.pth"],
        ["--predict", "student.pth", str(ROOT / "docs/star.jpg")],  # as in the README
    ):
        program = [sys.executable, str(ROOT / "train_fskd.py"), *arguments]
        printed = subprocess.run(program, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert "star.jpg: star " in printed
    head, *lines = (line.split(",") for line in (tmp_path / "runs/Shapes10/table.csv").read_text().splitlines())
    rows = [dict(zip(head, line, strict=True)) for line in lines]
    best = [float(row["best"]) for row in rows]
    assert float(rows[0]["teacher"]) >= 90
    assert best[0] < best[1] < best[2] and float(rows[2]["to_teacher"]) >= -5


def test_cells_that_all_run_elsewhere_are_no_error(with_teacher, capsys):
    lock = Path("runs/Folder/results/1-shot/trial-0.lock")
    lock.parent.mkdir(parents=True)
    with filelock.FileLock(lock):
        assert command(*CELL) == 0
    printed = capsys.readouterr().out
    assert "another process is running it" in printed and "no results yet; other processes run the cells" in printed


def test_a_teacher_is_trained_by_one_process(at_home, monkeypatch, recipe, capsys):
    """Another one that needs the same teacher waits for it; one that trains it explicitly is refused."""
    monkeypatch.setitem(recipes.RECIPES, "Folder", replace(recipe, trains_own_teacher=True))
    monkeypatch.setattr(teachers.TeacherTraining, "run", lambda *_: pytest.fail("trained twice"))
    Path(TEACHER).parent.mkdir(parents=True)
    with filelock.FileLock("ckpt/teacher/.vgg16-blockwise-folder.lock"):
        assert command("--train_teacher") == 2
        assert "another process is training it" in capsys.readouterr().err
    monkeypatch.setattr(
        teachers.files, "require_writable", lambda *_: checkpoints.write_network(small_teacher(), Path(TEACHER))
    )  # meanwhile
    hold = teachers.locks.hold

    def busy(path, timeout=0):
        if timeout == 0 and path.name == ".vgg16-blockwise-folder.lock":
            raise teachers.locks.Timeout(path)
        return hold(path)

    monkeypatch.setattr(teachers.locks, "hold", busy)
    assert command("--diagnose", "--nshot", "1") == 0
    assert f"{TEACHER}: another process is making it; waiting for it\n" in capsys.readouterr().out


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_full_memory_is_one_line(with_teacher, monkeypatch, capsys, error):
    def full(*_):
        raise error

    monkeypatch.setattr(commands.sweep, "run", full)
    assert command("--nshot", "1") == 2
    assert "the memory is full" in (line := capsys.readouterr().err) and line.count("\n") == 1
