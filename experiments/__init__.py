"""What runs the method: cells, sweeps over N and trials, their results, tables and curves."""
