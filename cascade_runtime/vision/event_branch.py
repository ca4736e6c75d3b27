"""Stage 1, the event branch: a recording becomes frames by a named rule, and frames become event features.

The rule and its numbers belong to the target's checkpoint (`event_representation` in its preprocessor_config.json): a
model is fed what it was trained on. A recording longer than one window is seen through its densest window.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from cascade_runtime.config import Recipe, Sees
from cascade_runtime.events import Events
from cascade_runtime.events.cell_counts import cell_counts
from cascade_runtime.events.facts import patch_occupancy
from cascade_runtime.events.representations import represent
from cascade_runtime.events.representations.activity import time_slices
from cascade_runtime.models.event_encoder import load_event_encoder
from cascade_runtime.models.stage_source import checkpoint_path, load_front, pick_device
from cascade_runtime.vision.features import VisualFeatures, source_hash

WINDOW_US = 100_000


@dataclass(frozen=True, eq=False)
class EventView:
    """What the event branch made of a recording: frames for the dense tower, features for the adapter (or None), and
    where the events of each frame lie (`cell_counts`), if a stage asks for it.
    """

    frames: np.ndarray
    source: str
    features: VisualFeatures | None
    density: np.ndarray | None = None


class EventBranch:
    """Renders and encodes. Without an event encoder in the recipe it renders only. counts: say where events lie."""

    def __init__(
        self, representation: tuple[str, dict[str, Any]], encoder: Any | None, *, counts: bool = False
    ) -> None:
        self.rule, self.options = representation
        self.encoder = encoder
        self.counts = counts

    @classmethod
    def load(cls, recipe: Recipe) -> EventBranch:
        """Load what the recipe names."""
        encoder = None
        if recipe.encoder is not None:
            encoder = load_event_encoder(checkpoint_path(recipe.encoder), pick_device(recipe.encoder.device))
        counts = any(Sees.parse(stage.sees).counts_events for stage in recipe.stages)
        return cls(load_front(recipe.target).pixels.event_representation, encoder, counts=counts)

    @torch.inference_mode()
    def view(self, events: Events, encode: bool = True) -> EventView:
        """Render the densest window of a recording and, unless told not to, encode it."""
        window = events.densest_window(WINDOW_US) if events.duration_us >= WINDOW_US else events
        frames = render(window, self.rule, self.options)
        source = source_hash(frames)
        density = None
        if self.counts:
            density = cell_counts(window, frame_numbers(window, self.rule, self.options), len(frames))
        if self.encoder is None or not encode:
            return EventView(frames, source, None, density)
        encoded = self.encoder(torch.from_numpy(frames.copy()))
        transforms = (self.rule, "event_encoder")
        features = VisualFeatures.from_tensor(encoded, space=self.encoder.space, transforms=transforms, source=source)
        return EventView(frames, source, replace(features, occupancy=patch_occupancy(window)), density)


def render(events: Events, rule: str, options: dict[str, Any]) -> np.ndarray:
    """A window as frames: by a rule that makes several itself, or one picture for each of `frames` equal counts of
    events (how EventGPT cuts a window).
    """
    if rule == "activity":
        return represent(events, rule, **options)
    each = {name: value for name, value in options.items() if name != "frames"}
    pairs = itertools.pairwise(_edges(events, options))
    return np.stack([represent(events.slice(a, b), rule, **each) for a, b in pairs])


def frame_numbers(events: Events, rule: str, options: dict[str, Any]) -> np.ndarray:
    """(N,) int64: in which of the frames that `render` makes each event is."""
    if rule == "activity":
        return (
            time_slices(events.t, events.t[0], events.t[-1], options.get("frames", 2))[0] if len(events) else events.t
        )
    return np.searchsorted(_edges(events, options), np.arange(len(events)), side="right") - 1


def _edges(events: Events, options: dict[str, Any]) -> list[int]:
    """Where frames of equal counts begin, and the end."""
    count = options.get("frames", 1)
    step = len(events) // count
    return [*range(0, step * count, step), len(events)] if step else [0, len(events)]
