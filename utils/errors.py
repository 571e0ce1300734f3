"""The one exception that means: the user can mend this."""


class BadInput(Exception):
    """One line that names the file or flag, what is wrong and what to do. Exit status 2."""
