"""A method's learning rates and temperature: every entry of its grid (comparisons/methods.py) at one N, trial 0.

    python -m benchmarks.grid --dataset CIFAR10 --method kd --output_dir benchmarks/results/grids/CIFAR10/kd

Takes the flags of train_fskd.py; --nshot takes one N, by default 10. Each entry has an output directory of its own, so
an interrupted grid continues where it stopped. Writes grid.md. The entry with the highest last test accuracy on CIFAR10
at N = 10 is the one for METHODS. Since the last one decides, test accuracies are measured at a few epochs only.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, replace

from comparisons.methods import GRID
from experiments import results
from experiments.commands import require_sweep
from experiments.job import Job, say
from experiments.plan import Plan
from experiments.sweep import run
from grafting.method import Method
from train_fskd import command_line
from utils import files
from utils.errors import BadInput
from utils.text import markdown_table

TRIAL = 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_line("benchmarks.grid", __doc__)
    parser.set_defaults(nshot=[10])
    args = parser.parse_args(argv)
    try:
        require_sweep(args)
        for flag in ("trials", "shard", "best_of"):
            if getattr(args, flag) != parser.get_default(flag):
                raise BadInput(f"--{flag}: leave it out; a grid is trial {TRIAL}, --best_of 1")
        if len(args.nshot) > 1:
            raise BadInput("--nshot: a grid is for one N")
        if args.method not in GRID:
            raise BadInput(f"--method {args.method}: has no grid; choose from {', '.join(GRID)}")
        job = Job(args)
        plan = job.plan()
        plans = {entry: plan_of(entry, plan) for entry in GRID[args.method]}
        failed = run(plans.values(), job.device)
        text = markdown(plans, args.nshot[0])
        files.write_text(job.output_dir / "grid.md", text)
    except BadInput as error:
        sys.stderr.write(f"benchmarks.grid: {error}\n")
        return 2
    say(text)
    return int(failed)


def plan_of(entry: Method, plan: Plan) -> Plan:
    """The plan for one entry: one cell, in folders of its own."""
    label = label_of(entry)
    return replace(
        plan,
        method=entry,
        recipe=plan.recipe.best_of(1),
        cells=plan.cells[:1],
        output_dir=plan.output_dir / label,
        student_dir=plan.student_dir / f"{entry.name}-{label}",
    )


def label_of(entry: Method) -> str:
    """The name of an entry's folder."""
    return "-".join(f"{name}-{value:g}" for name, value in asdict(entry).items())


def markdown(plans: dict[Method, Plan], shots: int) -> str:
    """The table of the grid, and what is chosen. Another process may still be running an entry."""
    paths = {entry: results.path_of(plan.output_dir, shots, TRIAL) for entry, plan in plans.items()}
    found = {
        entry: results.read(path) if path.exists() else {"status": "not finished"} for entry, path in paths.items()
    }
    done = {entry: result for entry, result in found.items() if result["status"] == "done"}
    names = list(asdict(next(iter(plans))))
    lines = [[*names, "last"], ["-:"] * (len(names) + 1)]
    for entry, result in found.items():
        last = f"{result['last']:.2f}" if entry in done else result["status"]
        lines.append([*(f"{value:g}" for value in asdict(entry).values()), last])
    chosen = max(done, key=lambda entry: done[entry]["last"], default=None)
    return f"{markdown_table(lines)}\n\nHighest last test accuracy at N = {shots}, trial {TRIAL}: `{chosen}`\n"


if __name__ == "__main__":
    sys.exit(main())
