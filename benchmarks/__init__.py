"""Measurements, each a command: `python -m benchmarks.<name>`."""

import train_fskd  # noqa: F401  before torch is loaded: it says how threads wait, as in the runs that are measured
