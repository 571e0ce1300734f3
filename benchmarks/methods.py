"""Every method on the same teacher and images (docs/comparisons.md): its cells, then their table and figure.

    python -m benchmarks.methods --dataset CIFAR10 --nshot 1 10 --trials 3 --best_of 1 --output_dir runs/methods/CIFAR10
    python -m benchmarks.methods --dataset CIFAR10 --grid kd --output_dir runs/grids/CIFAR10/kd

Takes the flags of train_fskd.py. Each method has an output directory of its own in --output_dir; all share one cache of
teacher features. `python train_fskd.py --compare runs/methods/CIFAR10` makes tables and figure again.

--grid runs the entries of a method's grid (comparisons/methods.py) at one N, by default 10, and writes grid.md. The one
with the highest last test accuracy of trial 0 on CIFAR10 at N = 10 is that of METHODS, at N = 1 that of ONE_SHOT.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from comparisons.methods import GRID, METHODS, ONE_SHOT
from experiments import commands, comparison, results, sweep
from experiments.arguments import command_line
from experiments.job import Job
from grafting.method import Method
from grafting.recipes import PUBLISHED_SHOTS
from utils import files
from utils.text import markdown_table, say


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status, as --help lists it."""
    return commands.run(arguments(argv), run, "benchmarks.methods")


def run(base: Job) -> int:
    """Run the methods, or the grid, that the flags name."""
    args = base.args
    commands.require_sweep(args)
    comparison.require_no_run(base.output_dir)
    grid = {label_of(entry): entry for entry in GRID.get(args.grid, ())}
    methods = grid or {name: METHODS[name] for name in args.methods or METHODS}
    jobs = [job_of(base, folder, method, {} if grid else ONE_SHOT) for folder, method in methods.items()]
    sweep.run(jobs)
    if args.grid:
        write_grid(base.output_dir, args.grid, args.nshot[0])
    else:
        say(comparison.write([base.output_dir], None, say)[1])
    return int(sweep.any_failed(jobs))


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The parsed command line. A wrong argument ends the program with one line and exit status 2."""
    parser = command_line("benchmarks.methods", __doc__)
    parser.set_defaults(nshot=None)
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="which methods (default: all)")
    parser.add_argument("--grid", choices=GRID, help="run the grid of this method instead (default: off)")
    args = parser.parse_args(argv)
    given = {name for name, value in vars(args).items() if value != parser.get_default(name)}
    if given & {"method", "optimize_span"}:
        parser.error("--method and --optimize_span: name methods and joins with --methods or --grid")
    if {"methods", "grid"} <= given:
        parser.error("--methods and --grid: only one of them")
    args.nshot = args.nshot or ([10] if args.grid else list(PUBLISHED_SHOTS))
    if args.grid:
        if given & {"trials", "shard", "best_of"} or len(args.nshot) > 1:
            parser.error("--grid: trial 0 of one N with --best_of 1; leave --trials, --shard and --best_of out")
        args.trials, args.best_of, args.method = 1, 1, args.grid
    return args


def job_of(base: Job, folder: str, method: Method, one_shot: Mapping[str, Method]) -> Job:
    """The job for one method, in a folder of its own. Images and teacher are the base's.

    one_shot: methods that have other numbers at N = 1, by name.
    """
    job = base.in_folders(base.output_dir / folder, base.student_dir / folder)
    job.require_possible(method)
    job.method, job.one_shot_method = method, one_shot.get(method.name)
    return job


def label_of(entry: Method) -> str:
    """The name of the folder of a grid's entry."""
    return "-".join(f"{name}-{value:g}" for name, value in asdict(entry).items())


def write_grid(folder: Path, method: str, shots: int) -> None:
    """Write grid.md, with what is chosen, from the result files in the folder. Some entries may still be running."""
    head, body, done = [*asdict(GRID[method][0]), "last"], [], {}
    for entry in GRID[method]:
        path = results.path_of(folder / label_of(entry), shots, 0)
        result = results.read(path) if path.exists() else {"status": "not finished"}
        if result["status"] == "done":
            done[entry] = result["last"]
        last = f"{done[entry]:.2f}" if entry in done else result["status"]
        body.append([*(f"{value:g}" for value in asdict(entry).values()), last])
    highest = f"Highest last test accuracy at N = {shots}, trial 0: `{max(done, key=done.get, default=None)}`"
    text = f"{markdown_table([head, ['-:'] * len(head), *body])}\n\n{highest}\n"
    files.write_text(folder / "grid.md", text)
    say(text)


if __name__ == "__main__":
    sys.exit(main())
