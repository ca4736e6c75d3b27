"""`FeaturePacker`: event encoder and adapter on the edge. Needs torch and the recipe's two checkpoints.

It serves the cut "features", and "drafts", whose drafter reads the features that are sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cascade_runtime.config import Recipe
from cascade_runtime.edge.arrays import pack_arrays
from cascade_runtime.edge.cut import Seeing
from cascade_runtime.edge.ingest import Window
from cascade_runtime.edge.packing import part_of, rendered
from cascade_runtime.errors import ConfigError, FeatureSpaceError
from cascade_runtime.events.representations.window import seen_window
from cascade_runtime.models.event_encoder import load_adapter, load_event_encoder
from cascade_runtime.models.stage_source import checkpoint_path, pick_device
from cascade_runtime.proto import edge_pb2
from cascade_runtime.vision.adapter_verifier import adapted
from cascade_runtime.vision.event_branch import EventBranch, EventView
from cascade_runtime.vision.features import VisualFeatures


@dataclass(frozen=True)
class FeatureModels:
    """A recipe's event encoder and adapter."""

    encoder: Any
    adapter: Any

    @classmethod
    def load(cls, recipe: Recipe) -> FeatureModels:
        """Both, on their devices. Raises `ConfigError` for a recipe without them."""
        if recipe.encoder is None or recipe.adapter is None or recipe.emulation is not None:
            raise ConfigError("cut", "features", "with a recipe that has an [encoder] and an [adapter], not emulated")
        encoder = load_event_encoder(checkpoint_path(recipe.encoder), pick_device(recipe.encoder.device))
        return cls(encoder, load_adapter(checkpoint_path(recipe.adapter), pick_device(recipe.adapter.device)))


class FeaturePacker:
    """Frames, event features and aligned features of a window, as the core's own stages would make them."""

    def __init__(self, models: FeatureModels, seeing: Seeing) -> None:
        encoder, self._adapter = models.encoder, models.adapter
        mine, theirs = (encoder.space, self._adapter.target_space), (seeing.source_space, seeing.target_space)
        if mine != theirs:
            raise FeatureSpaceError("features.space", mine, f"the core's, {theirs}")
        self._branch = EventBranch((seeing.rule, seeing.options), encoder, counts=seeing.counts)
        self._seeing = seeing

    def pack(self, window: Window) -> edge_pb2.WindowPart:
        """Frames, features and aligned features."""
        return self.see(window)[0]

    def see(self, window: Window) -> tuple[edge_pb2.WindowPart, EventView, VisualFeatures]:
        """The same, with the view and the aligned features themselves."""
        seen = seen_window(window.events)
        view = self._branch.view(seen)
        assert view.features is not None
        aligned = adapted(self._adapter, view.features)
        arrays = {"frames": view.frames, "features": view.features.data, "aligned": aligned.data}
        if view.density is not None:
            arrays["density"] = view.density
        part = part_of(window, pack_arrays(arrays))
        part.rendered.CopyFrom(rendered(self._seeing, seen, view.source))
        part.rendered.source_space, part.rendered.target_space = view.features.space, aligned.space
        return part, view, aligned
