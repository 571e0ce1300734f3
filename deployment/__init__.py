"""Using a student: folding, the teacher's confidence, one file that needs no other, predictions, comparison."""
