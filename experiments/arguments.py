"""The command line: every flag with its unit and default."""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from grafting.recipes import PUBLISHED_SHOTS, RECIPES
from models.architectures import NETWORK_NAMES, STUDENT_WIDTH
from utils import __version__
from utils.argument_types import (
    Shard,
    blocks,
    from_zero,
    gigabytes,
    networks,
    path,
    positive,
    shard,
    share,
    true_or_false,
    weight,
    whole_number,
)  # fmt: skip

# Choices, spelled out here so that the command line is parsed without loading torch; a test compares them.
METHOD_NAMES = (  # comparisons/methods.py
    "grafting", "whole", "kd", "fitnets", "fskd", "least-squares", "least-squares-images", "nearest-class-mean",
)  # fmt: skip
JOINS = ("front", "straight", "back")  # grafting/stages.py
STARTS = ("fresh", "teacher")
PRECISIONS = ("tf32", "float32", "bfloat16")  # utils/precision.py
DATA_PATH = Path("data/raw")

# The flags that each command reads; "" is a sweep.
READS = {
    "": (
        "method", "optimize_span", "nshot", "trials", "seed", "subset_seed", "subset_seeds", "eval_every", "best_of",
        "device", "precision", "memory", "shard", "fresh", "teacher", "networks", "image_size", "grafted",
        "student_width", "start", "output_dir", "student_dir", "dataset", "data_path",
    ),
    "build_dataset": ("dataset", "data_path", "subset_seed"),
    "train_teacher": (
        "dataset", "data_path", "seed", "device", "fresh", "teacher", "output_dir", "teacher_recipe", "teacher_from",
        "teacher_epochs", "teacher_prototypes", "networks", "image_size",
    ),
    "diagnose": (
        "dataset", "data_path", "nshot", "subset_seed", "device", "precision", "teacher", "networks",
    ),
    "evaluate": (
        "dataset", "data_path", "device", "precision", "teacher", "networks", "image_size", "grafted", "student_width",
        "json",
    ),
    "export": (
        "dataset", "data_path", "subset_seed", "device", "fresh", "teacher", "networks", "image_size", "grafted",
        "student_width", "to",
    ),
    "predict": ("json",),
    "table": (
        "dataset", "data_path", "method", "optimize_span", "networks", "grafted", "student_width", "start",
        "output_dir",
    ),
    "compare": ("output_dir",),
}  # fmt: skip


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line, and which refuses flags that would be ignored."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:
        found = super().parse_args(args, namespace)
        command = found.command = next((name for name in READS if name and getattr(found, name)), "")
        for flag in dict.fromkeys(flag for flags in READS.values() for flag in flags):
            readers = [name for name, flags in READS.items() if flag in flags]
            if command not in readers and getattr(found, flag) != self.get_default(flag):
                only = f"only with {' or '.join(f'--{name}' for name in readers)}"
                self.error(f"--{flag}: {f'not with --{command}' if '' in readers else only}")
        return found

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see --help\n")


class Help(argparse.RawDescriptionHelpFormatter):
    """Help that shows every default; where it is None, the flag's help says what that means."""

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.default in (None, argparse.SUPPRESS):
            return action.help
        default = action.default
        shown = "off" if default is False else " ".join(map(str, default)) if isinstance(default, list) else default
        return f"{action.help} (default: {str(shown).replace('%', '%%')})"


def command_line(name: str, description: str) -> Parser:
    """All flags, for the program of that name."""
    made = Parser(
        prog=name,
        description=description,
        epilog="Exit status: 0 done, 1 a cell failed, a picture could not be read or a new teacher only guesses, 2 bad"
        " input, 130 or 143 interrupted.",
        formatter_class=Help,
    )
    made.add_argument("--version", action="version", version=f"fskd {__version__}", help="print the version and end")
    made.add_argument("--dataset", choices=tuple(RECIPES), default="CIFAR10", help="data set")
    add_networks(made.add_argument_group("the networks").add_argument)
    add_methods(made.add_argument_group("the method").add_argument)
    sweep = made.add_argument_group("the sweep")
    add_sweep(sweep.add_argument, sweep.add_mutually_exclusive_group().add_argument)
    add_paths(made.add_argument_group("files and folders").add_argument)
    add_commands(made.add_argument_group("instead of the sweep").add_mutually_exclusive_group().add_argument)
    add_training(made.add_argument_group("with --train_teacher").add_argument)
    return made


# fmt: off
def add_networks(add: Callable[..., Any]) -> None:
    add("--networks", type=partial(networks, names=NETWORK_NAMES), metavar="NAME",
        help=f"teacher and student: {', '.join(NETWORK_NAMES)}, or a Python file of your own (docs/networks.md); a"
             " VGG's depth and widths follow from its file (default: vgg16; Shapes10: vgg11-small)")
    add("--image_size", type=partial(whole_number, least=8), metavar="S",
        help="pixels on each side of the network's images; other images are resized (default: 32 for VGGs, 224 for"
             " ResNets)")
    add("--grafted", type=blocks, metavar="I-J",
        help="graft the blocks I to J only; the others stay the teacher's (default: all that the networks name: 3-5 of"
             " VGGs, 1-4 of ResNets)")
    add("--student_width", type=share, metavar="W", default=STUDENT_WIDTH,
        help="for VGGs: the share of the teacher's channels that grafted blocks have")
    add("--start", choices=STARTS, default=STARTS[0],
        help="how student blocks begin: fresh, with random weights, as in the paper; teacher, with the teacher's: a"
             " VGG's filters, chosen and fitted by least squares, or a ResNet's residual blocks. From few images it is"
             " the better start (docs/start.md)")


def add_methods(add: Callable[..., Any]) -> None:
    add("--method", choices=METHOD_NAMES, default=METHOD_NAMES[0],
        help="how the student is made: grafting, the paper's, or a method that it is compared with"
             " (docs/comparisons.md)")
    add("--optimize_span", choices=JOINS, default=JOINS[0],
        help="how stage 2 of grafting joins the scions: front, the first two (L=2), then one more at a time;"
             " straight, all at once; back, from the last two")


def add_sweep(add: Callable[..., Any], add_one_of: Callable[..., Any]) -> None:
    add("--nshot", type=positive, nargs="+", metavar="N", default=list(PUBLISHED_SHOTS), help="shots: images per class")
    add("--trials", type=positive, metavar="T", default=5, help="runs per N, each with other random numbers")
    add("--seed", type=from_zero, default=0,
        help="seed of initialisation, order and views in cells and in --train_teacher")
    add_one_of("--subset_seed", type=from_zero,
        help="seed of the few-shot subset (default: as released, 6; CIFAR100: 10)")
    add_one_of("--subset_seeds", type=from_zero, nargs="+", metavar="S",
        help="run the cells of several few-shot subsets, each in a folder subset-S of the output directory, and make"
             " one table over subsets and trials (default: off)")
    add("--eval_every", type=positive, metavar="K",
        help="epochs between test accuracies where no best epoch is looked for (default: a fifth of each phase)")
    add("--best_of", type=positive, metavar="K",
        help="the best epoch is chosen among the last K of L=3, each of which is measured; 1: the last epoch is taken,"
             " so the test set chooses nothing, and most evaluation time is saved (default: as many as the paper's L=3"
             " has)")
    add("--device",
        help="torch device; cuda without a number spreads torchrun's processes over the GPUs (default: cuda if there is"
             " one, else cpu)")
    add("--precision", choices=PRECISIONS, default=PRECISIONS[0],
        help="arithmetic, also of --evaluate and --diagnose; tf32: PyTorch's default, TensorFloat-32 in convolutions on"
             " NVIDIA GPUs, float32 everywhere else; float32: everywhere; bfloat16: automatic mixed precision, cached"
             " features in bfloat16")
    add("--memory", type=gigabytes, metavar="GB",
        help="for cached teacher features, in 10^9 bytes per process; give it to runs that start at the same moment"
             " (default: three quarters of what is free in the container or job, shared by torchrun's processes)")
    add("--shard", type=shard, metavar="I/K", default=Shard(1, 1),
        help="the I-th of K shares of the cells, for job arrays")
    add("--fresh", action="store_true",
        help="run finished cells again; with --train_teacher or --export, replace the file")


def add_paths(add: Callable[..., Any]) -> None:
    add("--data_path", type=path, metavar="DIR", default=DATA_PATH,
        help="folder of the official files and the few-shot pickles; for Folder, of train/ and test/; none for"
             " Shapes10")
    add("--teacher", type=path, metavar="FILE",
        help="the teacher's weights; torchvision: those of torchvision for ImageNet (default:"
             " ckpt/teacher/<networks>-blockwise-<dataset>.pth, if missing downloaded, for Shapes10 trained; of other"
             " networks than VGGs ckpt/teacher/<teacher>-<dataset>-<S>px.pth)")
    add("--output_dir", type=path, metavar="DIR",
        help="results, curves and tables (default: runs/<dataset>, with networks other than VGGs or with other widths,"
             " blocks or starts runs/<dataset>-<networks>, and with other methods -<method> behind it)")
    add("--to", type=path, metavar="FILE",
        help="with --export: .pth, .pt2, .onnx or .int8.onnx (default: the student's name with -exported.pth; with"
             " networks of your own -exported.pt2)")
    add("--json", type=path, metavar="FILE",
        help="with --evaluate and --predict: write the figures, or all classes' probabilities, to this file too"
             " (default: off)")
    add("--student_dir", type=path, metavar="DIR",
        help="weights of the students (default: ckpt/student; with --output_dir, its folder student)")


def add_commands(add: Callable[..., Any]) -> None:
    add("--build_dataset", type=true_or_false, nargs="?", const=True, default=False, metavar="True",
        help="write the 24 few-shot files of both CIFARs, downloading them if missing")
    add("--train_teacher", action="store_true",
        help="train a teacher on the labelled training set, write it to --teacher")
    add("--diagnose", action="store_true",
        help="can this teacher be grafted? what simple classifiers read off each block's output, fitted on few-shot"
             " images (N: the largest of --nshot up to 10)")
    add("--evaluate", type=path, metavar="FILE",
        help="a teacher, a student (ours or released) or an exported student beside the teacher: test accuracy,"
             " calibration, size, speed (default: off)")
    add("--export", type=path, metavar="STUDENT",
        help="write a student as one file that needs no other: adapters folded, matched to the teacher's"
             " confidence (default: off)")
    add("--predict", type=path, nargs="+", metavar=("FILE", "PICTURE"),
        help="the most probable classes of pictures, or of all pictures in folders, by an exported student (default:"
             " off)")
    add("--table", action="store_true", help="write table and figure of one run from its result files")
    add("--compare", type=path, nargs="+", metavar="FOLDER",
        help="write tables and figure of several methods, starts or widths from the result files of their runs, or of"
             " those that a folder holds; in --output_dir, else in the one folder or beside the first (default: off)")


def add_training(add: Callable[..., Any]) -> None:
    add("--teacher_recipe", choices=("published", "quick", "plain"),
        help="published: a common recipe, not the authors'; no BatchNorm in the blocks, 300 epochs (CIFAR100: 200);"
             " quick: BatchNorm folded at the end, one cycle, heads that make the teacher graftable, balanced; plain:"
             " as quick, but nothing that makes the teacher graftable (default: published)")
    add("--teacher_from", type=path, metavar="FILE",
        help="make a finished teacher more graftable: continue with it for a few epochs with the two heads of quick,"
             " and balance it; write the result to --teacher; with --teacher_epochs 0, only balance it (default: a new"
             " teacher)")
    add("--teacher_epochs", type=from_zero, metavar="E",
        help="epochs; the schedule is scaled to them (default: the recipe's; with --teacher_from 3)")
    add("--teacher_prototypes", type=weight, metavar="W",
        help="with --teacher_recipe quick, or with --teacher_from: weight of the loss that pulls the outputs of block 2"
             " towards the mean of their class; 0: without it; what was measured: docs/teachers.md (default: 4,"
             " CIFAR10: 2, with --teacher_from: 1)")
# fmt: on
