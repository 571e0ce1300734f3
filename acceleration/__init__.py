"""What makes the method fast: cached teacher features, matrix products, fast test predictions, CUDA graphs.

Results are those of `grafting/` alone up to rounding.
"""
