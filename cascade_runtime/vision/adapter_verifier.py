"""Stage 2, the adapter and verifier: event features into the target tower's space, and the proof that they belong
there.

It holds the adapter, the target's own vision tower for the dense features, and the gate between the two.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from cascade_runtime.config import GateConfig, Recipe
from cascade_runtime.decoding.level import checkpoint_path
from cascade_runtime.errors import FeatureSpaceError
from cascade_runtime.models import load_checkpoint
from cascade_runtime.models.event_encoder import load_adapter
from cascade_runtime.vision.features import VisualFeatures
from cascade_runtime.vision.gate import GateDecision, decide, frame_cosines, random_baseline


class AdapterVerifier:
    """Aligned features, dense features and the gate. Without an adapter in the recipe there are dense features only."""

    def __init__(self, pixels: Any, tower: Any, adapter: Any | None, gate: GateConfig) -> None:
        self.pixels, self.tower, self.adapter, self.gate = pixels, tower, adapter, gate
        if adapter is not None and adapter.target_space != tower.space:
            raise FeatureSpaceError("adapter.target_space", adapter.target_space, f"the target's tower, {tower.space}")

    @classmethod
    def load(cls, recipe: Recipe) -> AdapterVerifier:
        """Load the target's tower and, where the recipe has one, the adapter."""
        place = recipe.adapter or recipe.target
        model = load_checkpoint(
            checkpoint_path(recipe.target), parts=("vision",), device=place.device, dtype=recipe.target.dtype
        )
        adapter = None
        if recipe.adapter is not None:
            adapter = load_adapter(checkpoint_path(recipe.adapter), device=recipe.adapter.device)
        return cls(model.pixels, model.vision, adapter, recipe.gate)

    @torch.inference_mode()
    def align(self, features: VisualFeatures) -> VisualFeatures:
        """Event features into the target tower's space. Refuses anything that is not this encoder's output."""
        if self.adapter is None:
            raise FeatureSpaceError("adapter", None, "a recipe with an [adapter]")
        features.expect(self.adapter.source_space, self.adapter.source_dim)
        aligned = self.adapter(features.tensor(self.adapter.device))
        return VisualFeatures.from_tensor(
            aligned, space=self.tower.space, transforms=(*features.transforms, "adapter"), source=features.source
        )

    @torch.inference_mode()
    def dense(self, frames: np.ndarray, source: str) -> VisualFeatures:
        """The target tower's own features of rendered frames."""
        pixels = self.pixels(frames)
        grid = getattr(pixels, "grid", None)
        raw = self.tower.encode(pixels)
        return VisualFeatures.from_tensor(raw, space=self.tower.space, transforms=("dense",), source=source, grid=grid)

    @torch.inference_mode()
    def predict(self, features: VisualFeatures) -> GateDecision:
        """The gate's decision from the head that predicts the cosine: no dense features needed."""
        cosines = self.adapter.predicted_cosine(features.tensor(self.adapter.device)).tolist()
        return decide(self.gate, cosines)

    @torch.inference_mode()
    def judge(self, features: VisualFeatures, aligned: VisualFeatures, dense: VisualFeatures) -> GateDecision:
        """The gate's decision from measured cosines; under policy "spot" some frames keep their prediction."""
        dense.expect(aligned.space, aligned.data.shape[2])
        cosines = list(frame_cosines(aligned.tensor(), dense.tensor()))
        baselines = list(random_baseline(features.tensor(), dense.tensor()))
        if self.gate.policy == "spot":
            predicted = self.adapter.predicted_cosine(features.tensor(self.adapter.device)).tolist()
            measured = spot_frames(dense.source, dense.frames, self.gate.spot_fraction)
            for frame in range(dense.frames):
                if frame not in measured:
                    cosines[frame], baselines[frame] = predicted[frame], -1.0
        return decide(self.gate, cosines, baselines)


def spot_frames(source: str, frames: int, fraction: float) -> frozenset[int]:
    """Which frames are measured under policy "spot": a fixed fraction, chosen by the recording's hash."""
    count = math.ceil(fraction * frames)
    order = np.random.default_rng(int(source, 16)).permutation(frames)
    return frozenset(order[:count].tolist())
