"""Tokens per second of a recipe on a Ray cluster, beside its own target alone: see `__main__.py`."""
