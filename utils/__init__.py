"""Helpers: the command line, errors, files, seeds, precision and the machine."""

__version__ = "1.0.0"  # of the program: printed by --version, recorded in result files
