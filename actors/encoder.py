"""`EventEncoderStage`: stage 1. A recording in, rendered frames and event features out."""

from __future__ import annotations

from typing import Any

import torch

from actors.heap import keep_heap
from actors.pulse import Pulse
from cascade_runtime.config import Recipe
from cascade_runtime.emulation.loading import load_branch
from cascade_runtime.events import Events
from cascade_runtime.tracing import Moments, Trace, Tracer
from cascade_runtime.vision.event_branch import EventView, RenderedWindow


class EventEncoderStage:
    """The event branch as a stage. Stateless between calls; safe to call from several threads."""

    def __init__(self, recipe: Recipe, replica: int = 0) -> None:
        self.name = recipe.members["encoder"][replica]
        if recipe.encoder is not None and recipe.encoder.threads:
            torch.set_num_threads(recipe.encoder.threads)
        self.branch = load_branch(recipe)
        self.tracer = Tracer(self.name, capacity=1024)
        keep_heap()

    def info(self) -> dict[str, Any]:
        """Facts for the launcher."""
        return {"name": self.name, "rule": self.branch.rule, "encodes": self.branch.encoder is not None}

    def view(self, handle: int, events: Events | RenderedWindow, encode: bool = True) -> EventView:
        """Frames and event features of one recording. Raises `InputError` on one that cannot be rendered."""
        with self.tracer.span("encode", handle):
            return self.branch.view(events, encode)

    def moments(self, handle: int) -> Moments:
        """What was done for a request: (what, start, end) in monotonic ns of this machine."""
        return self.tracer.of(handle)

    def pulse(self) -> Pulse:
        """That it is alive, and how long the oldest call inside has taken so far."""
        return Pulse.here(self.tracer.running_s)

    def trace(self) -> Trace:
        """The recorded spans."""
        return self.tracer.snapshot()

    def stop(self) -> None:
        """Nothing to end: there is no loop."""
