"""What is not the method: errors, files, seeds, results and curves."""
