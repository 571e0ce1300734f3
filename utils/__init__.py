"""What is not the method: the command line, errors, files, seeds, precision and the machine."""
