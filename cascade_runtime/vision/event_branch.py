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

from cascade_runtime.config import Recipe
from cascade_runtime.events import Events
from cascade_runtime.events.facts import patch_occupancy
from cascade_runtime.events.representations import represent
from cascade_runtime.models.event_encoder import load_event_encoder
from cascade_runtime.models.stage_source import checkpoint_path, load_front, pick_device
from cascade_runtime.vision.features import VisualFeatures, source_hash

WINDOW_US = 100_000


@dataclass(frozen=True, eq=False)
class EventView:
    """What the event branch made of a recording: frames for the dense tower, features for the adapter (or None)."""

    frames: np.ndarray
    source: str
    features: VisualFeatures | None


class EventBranch:
    """Renders and encodes. Without an event encoder in the recipe it renders only."""

    def __init__(self, representation: tuple[str, dict[str, Any]], encoder: Any | None) -> None:
        self.rule, self.options = representation
        self.encoder = encoder

    @classmethod
    def load(cls, recipe: Recipe) -> EventBranch:
        """Load what the recipe names."""
        encoder = None
        if recipe.encoder is not None:
            encoder = load_event_encoder(checkpoint_path(recipe.encoder), pick_device(recipe.encoder.device))
        return cls(load_front(recipe.target).pixels.event_representation, encoder)

    @torch.inference_mode()
    def view(self, events: Events, encode: bool = True) -> EventView:
        """Render the densest window of a recording and, unless told not to, encode it."""
        window = events.densest_window(WINDOW_US) if events.duration_us >= WINDOW_US else events
        frames = render(window, self.rule, self.options)
        source = source_hash(frames)
        if self.encoder is None or not encode:
            return EventView(frames, source, None)
        encoded = self.encoder(torch.from_numpy(frames.copy()))
        transforms = (self.rule, "event_encoder")
        features = VisualFeatures.from_tensor(encoded, space=self.encoder.space, transforms=transforms, source=source)
        return EventView(frames, source, replace(features, occupancy=patch_occupancy(window)))


def render(events: Events, rule: str, options: dict[str, Any]) -> np.ndarray:
    """A window as frames: by a rule that makes several itself, or one picture for each of `frames` equal counts of
    events (how EventGPT cuts a window).
    """
    if rule == "activity":
        return represent(events, rule, **options)
    each = dict(options)
    count = each.pop("frames", 1)
    step = len(events) // count
    edges = [*range(0, step * count, step), len(events)] if step else [0, len(events)]
    return np.stack([represent(events.slice(a, b), rule, **each) for a, b in itertools.pairwise(edges)])
