"""Images as arrays: the data sets, the few-shot subsets, and the 162 views of an image."""
