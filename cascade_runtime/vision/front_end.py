"""Both vision stages one after the other, for the one-process engine: what each language level is given to see.

mode strict     the target sees dense features, always; drafters see aligned ones wherever the gate accepts them
mode aligned    the target too sees aligned features wherever the gate accepts them: approximate, never called
lossless
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from cascade_runtime.config import Recipe
from cascade_runtime.events import Events
from cascade_runtime.vision.adapter_verifier import AdapterVerifier
from cascade_runtime.vision.event_branch import EventBranch
from cascade_runtime.vision.features import VisualFeatures
from cascade_runtime.vision.gate import GateDecision

Span = tuple[str, str, float, float]


@dataclass(frozen=True, eq=False)
class Seen:
    """The features for each level, the gate's decision, and what ran when (ms)."""

    features: tuple[VisualFeatures, ...]
    gate: dict[str, object] | None
    spans: tuple[Span, ...]


class FrontEnd:
    """The event branch and the adapter/verifier of one recipe, in this process."""

    def __init__(self, recipe: Recipe, branch: EventBranch, verifier: AdapterVerifier) -> None:
        self.mode, self.policy = recipe.cascade.mode, recipe.gate.policy
        self.branch, self.verifier = branch, verifier

    @classmethod
    def load(cls, recipe: Recipe) -> FrontEnd:
        """Load what the recipe names."""
        return cls(recipe, EventBranch.load(recipe), AdapterVerifier.load(recipe))

    def see(self, events: Events) -> Seen:
        """Features of one recording, as the recipe's mode and gate say."""
        start, spans = time.perf_counter(), []

        def done(stage: str, what: str, since: float) -> float:
            now = time.perf_counter()
            spans.append((stage, what, 1000 * (since - start), 1000 * (now - start)))
            return now

        view = self.branch.view(events)
        now = done("encoder", "encode", start)
        aligned = decision = None
        if view.features is not None:
            aligned = self.verifier.align(view.features)
            now = done("adapter", "align", now)
            if self.policy == "predicted":
                decision = self.verifier.predict(view.features)
        dense = None
        if needs_dense(self.mode, decision):
            dense = self.verifier.dense(view.frames, view.source)
            now = done("adapter", "dense", now)
            if view.features is not None and aligned is not None and decision is None:
                decision = self.verifier.judge(view.features, aligned, dense)
                done("adapter", "gate", now)
        target, drafters = share(self.mode, aligned, dense, decision)
        each = [
            drafters if shared else self.verifier.dense(view.frames, view.source, level)
            for level, shared in enumerate(self.verifier.shared[:-1])
        ]
        return Seen((*each, target), decision.to_dict() if decision else None, tuple(spans))


def needs_dense(mode: str, decision: GateDecision | None) -> bool:
    """Dense features are needed unless the target may see aligned ones and a prediction already accepted every
    frame.
    """
    return mode == "strict" or decision is None or not all(decision.accepted)


def share(
    mode: str, aligned: VisualFeatures | None, dense: VisualFeatures | None, decision: GateDecision | None
) -> tuple[VisualFeatures, VisualFeatures]:
    """(features for the target, features for the drafters)."""
    if aligned is None or decision is None:
        assert dense is not None
        return dense, dense
    mixed = aligned if dense is None else aligned.choose_frames(decision.accepted, dense)
    if mode == "strict":
        assert dense is not None
        return dense, mixed
    return mixed, mixed
