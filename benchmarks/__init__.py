"""Measurements: each file asks one question, runs the rival in the same process or turn about, prints a table and ends
in one line of JSON. `make bench` runs them all; `python -m benchmarks.<name>` one of them.
"""
