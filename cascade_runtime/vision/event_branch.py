"""Stage 1, the event branch: a recording becomes frames by a named rule, and frames become event features.

A recording longer than one window is seen through its densest window. Of a `RenderedWindow` another machine's branch
has done a part: what it left is done here, and what it did is checked.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from cascade_runtime.config import Recipe, Sees
from cascade_runtime.errors import FeatureSpaceError, InputError
from cascade_runtime.events import Events
from cascade_runtime.events.cell_counts import cell_counts
from cascade_runtime.events.facts import patch_occupancy
from cascade_runtime.events.representations.window import frame_numbers, render, seen_window, source_hash
from cascade_runtime.models.event_encoder import load_event_encoder
from cascade_runtime.models.stage_source import checkpoint_path, load_front, pick_device
from cascade_runtime.vision.features import MAX_FEATURE_BYTES, VisualFeatures


@dataclass(frozen=True, eq=False)
class EventView:
    """What the event branch made of a recording: frames for the dense tower, features for the adapter (or None), and
    where the events of each frame lie (`cell_counts`), if a stage asks for it. aligned: the features in the target
    tower's space, where another machine's adapter has already taken them there.
    """

    frames: np.ndarray
    source: str
    features: VisualFeatures | None
    density: np.ndarray | None = None
    aligned: VisualFeatures | None = None

    def __post_init__(self) -> None:
        if self.frames.ndim != 4 or 0 in self.frames.shape or self.frames.nbytes > MAX_FEATURE_BYTES:
            allowed = f"four sizes, none of them 0, {MAX_FEATURE_BYTES} bytes at most"
            raise FeatureSpaceError("view.frames", self.frames.shape, allowed)
        if self.frames.dtype not in (np.uint8, np.float32, np.float64):
            raise FeatureSpaceError("view.frames", str(self.frames.dtype), "uint8, float32 or float64")
        if self.density is not None and (self.density.ndim != 3 or self.density.dtype != np.float32):
            raise FeatureSpaceError("view.density", self.density.shape, "(frames, cells, cells) float32")

    def __reduce__(self) -> tuple[object, ...]:  # whoever gets one looks again
        return (type(self), tuple(getattr(self, field.name) for field in fields(self)))


@dataclass(frozen=True, eq=False)
class RenderedWindow:
    """A recording of which another machine has made frames, by `rule` and `options`, and perhaps features as well.

    view: what its event branch gave; nothing of it is believed before `EventBranch.view` has looked. occupancy: share
    of the window's 14-pixel patches in which anything happened. events: how many the frames were rendered from. drafts:
    that machine says that it drafts for this window.
    """

    view: EventView
    rule: str
    options: dict[str, Any]
    events: int
    duration_us: int
    occupancy: float
    drafts: bool = False

    def __len__(self) -> int:
        return self.events

    def densest_window(self, window_us: int) -> RenderedWindow:
        """Itself: a shorter one cannot be cut from frames."""
        if window_us < self.duration_us:
            raise InputError("window_us", window_us, f"at least {self.duration_us}: frames cannot be cut")
        return self


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
            stage = recipe.encoder
            encoder = load_event_encoder(checkpoint_path(stage), pick_device(stage.device), stage.dtype)
        counts = any(Sees.parse(stage.sees).counts_events for stage in recipe.stages)
        return cls(load_front(recipe.target).pixels.event_representation, encoder, counts=counts)

    @torch.inference_mode()
    def view(self, events: Events | RenderedWindow, encode: bool = True) -> EventView:
        """Render the densest window of a recording and, unless told not to, encode it."""
        if isinstance(events, RenderedWindow):
            return self._rendered(events, encode)
        window = seen_window(events)
        frames = render(window, self.rule, self.options)
        density = None
        if self.counts:
            density = cell_counts(window, frame_numbers(window, self.rule, self.options), len(frames))
        view = EventView(frames, source_hash(frames), None, density)
        return self._encoded(view, patch_occupancy(window)) if encode and self.encoder is not None else view

    def _encoded(self, view: EventView, occupancy: float) -> EventView:
        assert self.encoder is not None
        encoded = self.encoder(torch.from_numpy(view.frames.copy()))
        transforms = (self.rule, "event_encoder")
        space = self.encoder.space
        features = VisualFeatures.from_tensor(encoded, space=space, transforms=transforms, source=view.source)
        return replace(view, features=replace(features, occupancy=occupancy))

    def _rendered(self, window: RenderedWindow, encode: bool) -> EventView:
        """The rest of what another machine began, once what it did was checked."""
        view = window.view
        if (window.rule, window.options) != (self.rule, self.options):
            raise InputError("frames.rule", (window.rule, window.options), str((self.rule, self.options)))
        if view.source != source_hash(view.frames):
            raise FeatureSpaceError("frames.source", view.source, "the hash of these frames")
        if self.counts and (view.density is None or len(view.density) != len(view.frames)):
            raise InputError("frames.density", None, "where the events of each frame lie: a stage asks for it")
        if self.encoder is None or not encode:
            return replace(view, features=None, aligned=None)
        if view.features is None:
            return self._encoded(replace(view, aligned=None), window.occupancy)
        self._expect_mine(view)
        return view

    def _expect_mine(self, view: EventView) -> None:
        """Features that came with frames are what this encoder makes of them, as far as that shows."""
        features, encoder = view.features, self.encoder
        assert features is not None and encoder is not None
        features.expect(encoder.space, encoder.feature_size)
        found = (features.frames, features.transforms, features.source)
        wanted = (len(view.frames), (self.rule, "event_encoder"), view.source)
        if found != wanted:
            raise FeatureSpaceError("features (frames, transforms, source)", found, str(wanted))
