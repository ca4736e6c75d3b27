"""A pipelined cascade of vision-language models for event cameras and video.

Rows, each importing only from the rows below it (tests/test_architecture.py enforces this):

    8  cluster      7  actors       6  training, evaluation, batch      5  engine, in_turns, client, planning, edge
    4  vision, decoding, transports
    3  events, models, scheduling, channels, api                 leaves: they do not know each other
    2  config, messages, metrics, tracing                        1  errors

Importing this package loads none of torch, transformers or ray: names are resolved on first use.
"""

from __future__ import annotations

__version__ = "0.1.0"
