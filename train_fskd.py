"""Progressive network grafting for few-shot knowledge distillation (Shen et al., AAAI 2021).

    python train_fskd.py --dataset Shapes10 --nshot 1 5 10 --trials 3    synthetic images: minutes, nothing to download
    python train_fskd.py --dataset CIFAR10 --diagnose                    can this teacher be grafted?
    python train_fskd.py --dataset CIFAR10                               the paper's table: twelve N, five trials each,
                                                                         with the authors' teacher, which is downloaded

With --teacher ckpt/teacher/vgg16-blockwise-cifar10-second.pth, a teacher of 91.58% that ships, its line of N = 10 is:
best 91.31%, last 91.17% (README.md).
Results, table, figure and curves are in runs/<dataset>; the last lines of a run say how to look at them.
"""

import argparse
import os
import sys

from experiments.arguments import command_line
from utils import signals

# Threads that wait sleep instead of spinning, so two jobs on the same cores do not wait for one another
# (docs/speed.md). OpenMP reads this when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def main(argv: list[str] | None = None) -> int:
    """The exit status, as --help lists it."""
    signals.end_at_once("train_fskd.py: {}; nothing was begun")
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a path may hold bytes that are not valid text
    args = arguments(argv)
    from experiments import commands  # loads torch, which takes seconds: only for a command line without errors

    return commands.run(args)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The parsed command line. A wrong argument ends the program with one line and exit status 2."""
    return command_line("train_fskd.py", __doc__).parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
