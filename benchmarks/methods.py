"""Every method on the same teacher and images (docs/comparisons.md): its cells, then their table and figure.

    python -m benchmarks.methods --dataset CIFAR10 --nshot 1 10 --trials 3 --best_of 1 \\
        --output_dir benchmarks/results/methods/CIFAR10

Takes the flags of train_fskd.py; --methods names some of the methods, by default all. Each has an output directory of
its own in --output_dir, and all share one cache of teacher features. An interrupted run continues where it stopped;
a second process beside the first takes other cells. FSKD draws nothing, so it has one trial.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

from benchmarks import comparison
from comparisons.methods import METHODS
from experiments.job import Job
from experiments.plan import Plan
from experiments.sweep import Sweep
from train_fskd import arguments
from utils.errors import BadInput


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.methods", add_help=False)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    chosen, flags = parser.parse_known_args(argv)
    args = arguments(flags)
    try:
        if args.optimize_span != "front":
            raise BadInput("--optimize_span: name grafting-straight or grafting-back with --methods")
        job, prepared = Job(args), None
        plan = job.plan()
        for name in chosen.methods:
            prepared = Sweep(plan_of(name, plan), job.device).run(prepared)
    except BadInput as error:
        sys.stderr.write(f"benchmarks.methods: {error}\n")
        return 2
    return comparison.main([str(job.output_dir)])


def plan_of(name: str, plan: Plan) -> Plan:
    """The plan for one method, in a folder of its own."""
    cells = tuple(cell for cell in plan.cells if name != "fskd" or cell[1] == 0)
    return replace(plan, method=METHODS[name], cells=cells, output_dir=plan.output_dir / name)


if __name__ == "__main__":
    sys.exit(main())
