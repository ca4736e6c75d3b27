"""`AdapterVerifierStage`: stage 2. Aligned features at once, dense features beside them, and the gate between the
two.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from cascade_runtime.config import Recipe
from cascade_runtime.tracing import Trace, Tracer
from cascade_runtime.vision.adapter_verifier import AdapterVerifier
from cascade_runtime.vision.event_branch import EventView
from cascade_runtime.vision.features import VisualFeatures
from cascade_runtime.vision.gate import GateDecision


class AdapterVerifierStage:
    """The adapter/verifier as a stage. Stateless between calls: `align` and `dense` of one request may run at once."""

    def __init__(self, recipe: Recipe) -> None:
        if recipe.adapter is not None and recipe.adapter.threads:
            torch.set_num_threads(recipe.adapter.threads)
        self.verifier = AdapterVerifier.load(recipe)
        self.tracer = Tracer("adapter")

    def info(self) -> dict[str, Any]:
        """Facts for the launcher."""
        return {"name": "adapter", "space": self.verifier.space, "shared": self.verifier.shared}

    def align(self, handle: int, view: EventView) -> VisualFeatures:
        """Event features in the target tower's space."""
        start = time.monotonic_ns()
        assert view.features is not None
        aligned = self.verifier.align(view.features)
        self.tracer.record("align", start, time.monotonic_ns(), handle)
        return aligned

    def dense(self, handle: int, view: EventView, level: int = -1) -> VisualFeatures:
        """The features that one level's own tower (the target's, unless said otherwise) makes of the frames."""
        start = time.monotonic_ns()
        dense = self.verifier.dense(view.frames, view.source, level)
        self.tracer.record("dense", start, time.monotonic_ns(), handle)
        return dense

    def predict(self, view: EventView) -> GateDecision:
        """The gate without dense features."""
        assert view.features is not None
        return self.verifier.predict(view.features)

    def judge(self, view: EventView, aligned: VisualFeatures, dense: VisualFeatures) -> GateDecision:
        """The gate with dense features to compare with."""
        assert view.features is not None
        return self.verifier.judge(view.features, aligned, dense)

    def mix(self, aligned: VisualFeatures, dense: VisualFeatures, decision: GateDecision) -> VisualFeatures:
        """Frame by frame, aligned where accepted and dense elsewhere."""
        return aligned.choose_frames(decision.accepted, dense)

    def trace(self) -> Trace:
        """The recorded spans."""
        return self.tracer.snapshot()

    def stop(self) -> None:
        """Nothing to end: there is no loop."""
