"""The methods that grafting is compared with (docs/comparisons.md). A file each; methods.py lists them."""
