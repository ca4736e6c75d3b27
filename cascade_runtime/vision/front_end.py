"""Both vision stages one after the other, for the one-process engine: what each language level is given to see.

mode strict     the target sees dense features, always; drafters see aligned ones wherever the gate accepts them
mode aligned    the target too sees aligned features wherever the gate accepts them: approximate, never called
lossless
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from cascade_runtime.config import Recipe
from cascade_runtime.errors import CascadeError
from cascade_runtime.events import Events
from cascade_runtime.vision.adapter_verifier import AdapterVerifier
from cascade_runtime.vision.event_branch import EventBranch, EventView, RenderedWindow
from cascade_runtime.vision.features import VisualFeatures
from cascade_runtime.vision.online import updater_of

Span = tuple[str, str, float, float]


@dataclass(frozen=True, eq=False)
class Seen:
    """The features for each level (None: it cannot take part), the gate's decision, what ran when (ms), and notes."""

    features: tuple[VisualFeatures | None, ...]
    gate: dict[str, object] | None
    spans: tuple[Span, ...]
    notes: tuple[str, ...] = ()

    @property
    def for_target(self) -> VisualFeatures:
        target = self.features[-1]
        assert target is not None
        return target


class FrontEnd:
    """The event branch and the adapter/verifier of one recipe, in this process.

    updater: lets the adapter learn on from frames that the gate refuses, where the recipe says so; heard in mode
    "strict" under policy "full".
    """

    def __init__(self, recipe: Recipe, branch: EventBranch, verifier: AdapterVerifier) -> None:
        self.strict, self.policy = recipe.cascade.mode == "strict", recipe.gate.policy
        self.branch, self.verifier = branch, verifier
        self.updater = updater_of(recipe, verifier.adapter)

    def see(self, events: Events | RenderedWindow, *, speculate: bool = True) -> Seen:
        """Features of one recording, as the recipe's mode and gate say.

        In strict mode without drafters the event branch is of no use and does not run. In strict mode a failure of the
        event branch is a note: the target does not depend on it.
        """
        watch = _Watch()
        uses_events = self.branch.encoder is not None and (speculate or not self.strict)
        view = self.branch.view(events, encode=uses_events)
        watch.done("encoder", "encode")
        aligned = dense = decision = mixed = None
        notes: list[str] = []
        if self.strict or not uses_events or self.policy == "full":
            dense = self._dense(view)
            watch.done("adapter", "dense")
        try:
            if view.features is not None:
                aligned = self.verifier.aligned(view)
                watch.done("adapter", "align")
                decision = self.verifier.decide(view, aligned, dense)
                mixed = self.verifier.fill(view, aligned, decision, dense)
                watch.done("adapter", "gate")
                if self.updater is not None and self.strict and self.policy == "full" and dense is not None:
                    self.updater.observe(view.features, dense, decision)
                    watch.done("adapter", "learn")
        except CascadeError as error:
            if not self.strict:
                raise
            notes.append(f"without aligned features: {error}")
        target, drafters = (dense if dense is not None and self.strict else mixed or dense), mixed or dense
        each = [
            drafters if shared else self._dense(view, level)
            for level, shared in enumerate(self.verifier.shared[:-1])
            if speculate
        ] or [None] * (len(self.verifier.shared) - 1)
        return Seen((*each, target), decision.to_dict() if decision else None, watch.spans, tuple(notes))

    def _dense(self, view: EventView, level: int = -1) -> VisualFeatures:
        return self.verifier.counted(self.verifier.dense(view.frames, view.source, level), view, level)


class _Watch:
    """Consecutive spans since its making, in ms."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self.spans: tuple[Span, ...] = ()

    def done(self, stage: str, what: str) -> None:
        now = time.perf_counter()
        self.spans += ((stage, what, 1000 * (self._last - self._start), 1000 * (now - self._start)),)
        self._last = now
