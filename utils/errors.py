"""The exception for mistakes that the user can correct."""


class BadInput(Exception):
    """One line that names the file or flag, what is wrong and what to do. Exit status 2."""
