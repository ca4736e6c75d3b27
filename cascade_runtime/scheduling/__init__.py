"""Decisions without clocks or I/O: what a stage stands by (`standing`)."""
