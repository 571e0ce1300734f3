"""The methods that grafting is compared with (docs/comparisons.md). methods.py lists them."""
