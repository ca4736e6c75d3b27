"""What faults and overload cost, and whether an answer shows them: see `__main__.py`."""
