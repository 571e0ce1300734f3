"""Using a student: folding, calibration, one file that needs no other, predictions, comparison with the teacher."""
