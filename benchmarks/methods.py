"""Every method on the same teacher and images (docs/comparisons.md): its cells, then their table and figure.

    python -m benchmarks.methods --dataset CIFAR10 --nshot 1 10 --trials 3 --best_of 1 \\
        --output_dir benchmarks/results/methods/CIFAR10

Takes the flags of train_fskd.py; --methods names some of the methods, by default all. Each has an output directory of
its own in --output_dir, and all share one cache of teacher features. An interrupted run continues where it stopped;
a second process beside the first takes other cells. A method that draws nothing has one trial.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

from benchmarks import comparison
from comparisons.methods import METHODS
from experiments.commands import require_sweep
from experiments.job import Job
from experiments.plan import Plan
from experiments.sweep import run
from train_fskd import command_line
from utils.errors import BadInput


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_line("benchmarks.methods", __doc__)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="which methods")
    args = parser.parse_args(argv)
    try:
        require_sweep(args)
        if (args.method, args.optimize_span) != ("grafting", "front"):
            raise BadInput("--method and --optimize_span: name the methods and joins with --methods")
        job = Job(args)
        plan = job.plan()
        failed = run([plan_of(name, plan) for name in args.methods], job.device)
    except BadInput as error:
        sys.stderr.write(f"benchmarks.methods: {error}\n")
        return 2
    return comparison.main([str(job.output_dir)]) or int(failed)


def plan_of(name: str, plan: Plan) -> Plan:
    """The plan for one method, in a folder of its own."""
    method = METHODS[name]
    cells = tuple((shots, trial) for shots, trial in plan.cells if method.draws or trial == 0)
    return replace(plan, method=method, cells=cells, output_dir=plan.output_dir / name)


if __name__ == "__main__":
    sys.exit(main())
