"""A pipelined cascade of vision-language models for event cameras and video.

Rows, each importing only from the rows below it (tests/test_architecture.py enforces this):

    8  cluster
    7  actors
    6  training, evaluation, batch
    5  engine, in_process, in_turns, client, planning, edge
    4  vision, decoding, transports, simulation, emulation
    3  events, models, scheduling, channels, api                 leaves: they do not know each other
    2  config, messages, metrics, proto, tracing                 nor do these
    1  errors

Importing this package loads none of torch, transformers or ray: names are resolved on first use.

    from cascade_runtime import CascadeClient
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cascade_runtime.api import Answer
    from cascade_runtime.client import AsyncCascadeClient, CascadeClient
    from cascade_runtime.config import SamplingParams
    from cascade_runtime.errors import CascadeError
    from cascade_runtime.events import Events, read_events

__version__ = "0.1.0"
__all__ = ["Answer", "AsyncCascadeClient", "CascadeClient", "CascadeError", "Events", "SamplingParams", "read_events"]

_HOMES = {
    "Answer": "api",
    "AsyncCascadeClient": "client",
    "CascadeClient": "client",
    "CascadeError": "errors",
    "Events": "events",
    "SamplingParams": "config",
    "read_events": "events",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
