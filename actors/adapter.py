"""`AdapterVerifierStage`: stage 2. Aligned features at once, dense features beside them, and the gate between the
two.
"""

from __future__ import annotations

import threading
from typing import Any

import torch

from actors.heap import keep_heap
from actors.pulse import Pulse
from cascade_runtime.config import Recipe
from cascade_runtime.emulation.loading import load_verifier
from cascade_runtime.tracing import Moments, Trace, Tracer
from cascade_runtime.vision.event_branch import EventView
from cascade_runtime.vision.features import VisualFeatures
from cascade_runtime.vision.gate import GateDecision
from cascade_runtime.vision.online import updater_of


class AdapterVerifierStage:
    """The adapter/verifier as a stage: `align` and `dense` of one request may run at once. Stateless between calls, but
    for an adapter that learns.
    """

    def __init__(self, recipe: Recipe, replica: int = 0) -> None:
        self.name = recipe.members["adapter"][replica]
        if recipe.adapter is not None and recipe.adapter.threads:
            torch.set_num_threads(recipe.adapter.threads)
        self.verifier = load_verifier(recipe)
        self._updater, self._learning = updater_of(recipe, self.verifier.adapter), threading.Lock()
        self.tracer = Tracer(self.name, capacity=1024)
        keep_heap()

    def info(self) -> dict[str, Any]:
        """Facts for the launcher."""
        return {"name": self.name, "space": self.verifier.space, "shared": self.verifier.shared}

    def align(self, handle: int, view: EventView) -> VisualFeatures:
        """Event features in the target tower's space."""
        with self.tracer.span("align", handle):
            return self.verifier.aligned(view)

    def dense(self, handle: int, view: EventView, level: int = -1) -> VisualFeatures:
        """The features that one level's own tower (the target's, unless said otherwise) makes of the frames."""
        with self.tracer.span("dense", handle):
            return self.verifier.counted(self.verifier.dense(view.frames, view.source, level), view, level)

    def decide(
        self, handle: int, view: EventView, aligned: VisualFeatures, dense: VisualFeatures | None
    ) -> GateDecision:
        """The gate's decision on every frame, by the recipe's policy; what it refuses the adapter may learn from."""
        with self.tracer.span("decide", handle):
            decision = self.verifier.decide(view, aligned, dense)
        if self._updater is not None and view.features is not None and dense is not None:
            with self._learning, self.tracer.span("learn", handle):
                self._updater.observe(view.features, dense, decision)
        return decision

    def fill(
        self,
        handle: int,
        view: EventView,
        aligned: VisualFeatures,
        decision: GateDecision,
        dense: VisualFeatures | None,
    ) -> VisualFeatures:
        """Frame by frame, aligned where accepted and dense elsewhere."""
        with self.tracer.span("fill", handle):
            return self.verifier.fill(view, aligned, decision, dense)

    def correct(
        self,
        handle: int,
        view: EventView,
        aligned: VisualFeatures,
        decision: GateDecision,
        dense: VisualFeatures | None,
    ) -> VisualFeatures | None:
        """What `fill` gives, or None where every frame was accepted: nothing to correct."""
        return None if all(decision.accepted) else self.fill(handle, view, aligned, decision, dense)

    def moments(self, handle: int, after: object = None) -> Moments:
        """What was done for a request: (what, start, end) in monotonic ns of this machine. `after` is the outcome of a
        call that is to be among it.
        """
        return self.tracer.of(handle)

    def pulse(self) -> Pulse:
        """That it is alive, and how long the oldest call inside has taken so far."""
        return Pulse.here(self.tracer.running_s)

    def trace(self) -> Trace:
        """The recorded spans."""
        return self.tracer.snapshot()

    def stop(self) -> None:
        """Nothing to end: there is no loop."""
