"""What makes a cell fast and changes no result: cached features, fast test predictions, CUDA graphs."""
