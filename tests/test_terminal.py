"""What a user sees on the terminal: announcements, bars, and where everything is at the end."""

import fcntl
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios

from conftest import ROOT
from small import small_teacher

import train_fskd
from experiments.cell import progress
from grafting.distillation import Curve
from models import checkpoints

EPOCHS = {"B0": 3, "B1": 2, "B2": 2, "L2": 2, "L3": 4}


def test_every_long_act_is_announced_before_it_begins(with_teacher, capsys):
    assert train_fskd.main(["--dataset", "Folder", "--nshot", "1", "2", "--trials", "2"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""  # no bars where there is no terminal
    ends = [*(f"{phase}, epoch {n} of {n}, loss " for phase, n in EPOCHS.items()), "best "]
    expected = [
        "reading the images of Folder",
        "computing the teacher's features and test accuracy on 20 images",
        "teacher ckpt/teacher/vgg16-blockwise-folder.pth: test accuracy ",
        "4 cells, of N = 1, 2",
        "1-shot trial 0: first the teacher's features of 3 images, each in 162 views",
        *(f"1-shot trial 0: {end}" for end in ends),
        *(f"1-shot trial 1: {end}" for end in ends),  # the features are there already
        "2-shot trial 0: first the teacher's features of 3 more images (3 are cached), each in 162 views",
        *(f"2-shot trial 0: {end}" for end in ends),
        *(f"2-shot trial 1: {end}" for end in ends),
    ]
    announced, table, _ = printed.out.partition("|  N | ")
    assert table and len(announced.splitlines()) == len(expected)
    for line, begin in zip(announced.splitlines(), expected, strict=True):
        assert line.startswith(begin)
    assert re.findall(r"; (\d cells? left)", announced) == ["3 cells left", "2 cells left", "1 cell left"]


def test_the_commands_at_the_end_work(with_teacher, capsys):
    assert train_fskd.main(["--dataset", "Folder", "--nshot", "1", "2", "--trials", "2", "--output_dir", "a b"]) == 0
    printed = capsys.readouterr().out
    commands = re.findall(r"^(.*): python train_fskd.py (.*)$", printed, re.M)
    assert [purpose for purpose, _ in commands] == ["compare one with its teacher", "use one"]
    assert "\ncurves: tensorboard --logdir 'a b'\n" in printed and "\nstudents: a b/student\n" in printed
    assert all("-2perclass-trial0.pth" in flags for _, flags in commands)
    for _, flags in commands:
        assert train_fskd.main(shlex.split(flags)) == 0


def test_a_bar_says_phase_epoch_loss_last_accuracy_and_the_time_left():
    assert progress("B0", Curve(losses=[0.25]), 100) == "B0, epoch 1 of 100, loss 0.25"
    curve = Curve(losses=[0.25, 0.012345], accuracies={1: 50.0, 2: 91.184})
    assert progress("L3", curve, 100, 125.0) == "L3, epoch 2 of 100, loss 0.0123, test 91.18%, 2 min left"


def test_bars_on_a_terminal(tmp_path):
    checkpoints.write_network(small_teacher(), tmp_path / "teacher.pth")
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 150, 0, 0))  # rows and columns
    arguments = ["--nshot", "1", "--trials", "1", "--teacher", "teacher.pth", "--device", "cpu"]
    command = [sys.executable, str(ROOT / "tests/driver.py"), *arguments, "--output_dir", "out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_MININTERVAL": "60"}  # only the first and last states
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=theirs, env=environment):
        os.close(theirs)
        shown = b""
        while piece := read(ours):
            shown += piece
    os.close(ours)
    text = shown.decode()
    assert re.search(r"all cells: +\d+%\|.*0/1 .*cell", text)
    assert re.search(
        r"1-shot trial 0: +\d+%\|.*\d+/\d+ epochs \[.*, L3, epoch 4 of 4, loss [\d.e-]+, test [\d.]+%\]", text
    )


def read(terminal: int) -> bytes:
    """Empty when the other side is closed, which Linux reports as an error."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""
