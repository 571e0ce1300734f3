"""Helpers: the command line, errors, files, seeds, precision and the machine."""
