"""Images as arrays: the data sets, the few-shot subsets, and the views of an image."""
