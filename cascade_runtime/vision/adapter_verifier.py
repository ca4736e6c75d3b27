"""Stage 2, the adapter and verifier: event features into the target tower's space, and the proof that they belong
there.

It holds the adapter, the target's own vision tower for the dense features, and the gate between the two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from cascade_runtime.config import GateConfig, Recipe
from cascade_runtime.errors import FeatureSpaceError
from cascade_runtime.events.cell_counts import resampled
from cascade_runtime.models import load_checkpoint
from cascade_runtime.models.event_encoder import load_adapter
from cascade_runtime.models.stage_source import checkpoint_path, load_front, pick_device
from cascade_runtime.vision.event_branch import EventView
from cascade_runtime.vision.features import VisualFeatures
from cascade_runtime.vision.gate import GateDecision, decide, frame_cosines, random_baseline
from cascade_runtime.vision.kept import KeptFeatures


class AdapterVerifier:
    """Aligned features, dense features and the gate. Without an adapter in the recipe there are dense features only.

    towers: (pixel processor, vision tower) per level, the target's last; levels with equal towers share one object.
    keep_bytes: of dense features, for the next question about the same recording.
    """

    def __init__(
        self, towers: Sequence[tuple[Any, Any]], adapter: Any | None, gate: GateConfig, *, keep_bytes: int = 0
    ) -> None:
        self.towers, self.adapter, self.gate = list(towers), adapter, gate
        self.kept = KeptFeatures(keep_bytes)
        self.space: str = self.towers[-1][1].space
        if adapter is not None and adapter.target_space != self.space:
            raise FeatureSpaceError("adapter.target_space", adapter.target_space, f"the target's tower, {self.space}")

    @classmethod
    def load(cls, recipe: Recipe) -> AdapterVerifier:
        """Load every distinct tower of the recipe's levels and, where the recipe has one, the adapter. A tower that the
        target shares is of the target's type: what the target sees is no matter of who drafts for it.
        """
        device = (recipe.adapter or recipe.target).device
        device = "auto" if "+" in device else device  # whatever this process has: the target's own are full of layers
        by_space: dict[str, tuple[Any, Any]] = {}
        towers = []
        for stage in reversed(recipe.stages):
            space = load_front(stage).space
            if space not in by_space:
                model = load_checkpoint(
                    checkpoint_path(stage), parts=("vision",), device=pick_device(device), dtype=stage.dtype
                )
                by_space[space] = (model.pixels, model.vision)
            towers.append(by_space[space])
        adapter = None
        if recipe.adapter is not None:
            stage = recipe.adapter
            adapter = load_adapter(checkpoint_path(stage), pick_device(stage.device), stage.dtype)
        return cls(towers[::-1], adapter, recipe.gate, keep_bytes=recipe.cascade.keep_features_mb << 20)

    @property
    def shared(self) -> tuple[bool, ...]:
        """Per level, whether it reads the features of the target's tower."""
        return tuple(tower.space == self.space for _, tower in self.towers)

    def _expect_adapter(self, features: VisualFeatures) -> Any:
        """The adapter, if `features` are what it was trained on."""
        if self.adapter is None:
            raise FeatureSpaceError("adapter", None, "a recipe with an [adapter]")
        features.expect(self.adapter.source_space, self.adapter.source_dim)
        return self.adapter

    def _predicted(self, features: VisualFeatures) -> list[float]:
        adapter = self._expect_adapter(features)
        return adapter.predicted_cosine(features.tensor(adapter.device)).tolist()

    def align(self, features: VisualFeatures) -> VisualFeatures:
        """Event features into the target tower's space. Refuses anything that is not this encoder's output."""
        return adapted(self._expect_adapter(features), features)

    def aligned(self, view: EventView) -> VisualFeatures:
        """A view's features in the target tower's space, and where its events lie. Those that another machine's adapter
        made are taken if they are what this one would give, as far as that shows.
        """
        assert view.features is not None
        if view.aligned is None:
            return self.counted(self.align(view.features), view)
        adapter = self._expect_adapter(view.features)
        given = view.aligned.expect(self.space, adapter.target_dim)
        found = (given.data.shape[:2], given.transforms, given.source)
        wanted = (view.features.data.shape[:2], (*view.features.transforms, "adapter"), view.source)
        if found != wanted:
            raise FeatureSpaceError("aligned (shape, transforms, source)", found, str(wanted))
        return self.counted(given, view)

    @torch.inference_mode()
    def dense(self, frames: np.ndarray, source: str, level: int = -1) -> VisualFeatures:
        """The features that the tower of one level (the target's, unless said otherwise) makes of rendered frames."""
        processor, tower = self.towers[level]

        def encode() -> VisualFeatures:
            pixels = processor(frames)
            raw = tower.encode(pixels)
            return VisualFeatures.from_tensor(
                raw, space=tower.space, transforms=("dense",), source=source, grid=pixels.grid
            )

        return self.kept.get((tower.space, source), encode)

    def counted(self, features: VisualFeatures, view: EventView, level: int = -1) -> VisualFeatures:
        """Features of one level's tower with what the view knows of where the events lie in what that tower sees."""
        return counted(features, view, self.towers[level][0])

    @torch.inference_mode()
    def decide(self, view: EventView, aligned: VisualFeatures, dense: VisualFeatures | None) -> GateDecision:
        """The gate's decision on every frame.

        Policy "full" measures all cosines against `dense`; "predicted" asks the adapter's head and needs no dense
        features; "spot" measures a fraction of the frames (encoding only those where `dense` is None) and predicts
        the others.
        """
        assert view.features is not None
        frames = aligned.frames
        if self.gate.policy == "predicted":
            return decide(self.gate, self._predicted(view.features))
        measured = frozenset(range(frames))
        if self.gate.policy == "spot":
            measured = spot_frames(view.source, frames, self.gate.spot_fraction)
        cosines, baselines = [0.0] * frames, [-1.0] * frames
        if len(measured) < frames:
            cosines = self._predicted(view.features)
        chosen = sorted(measured)
        if chosen:
            proof = dense.tensor()[chosen] if dense is not None else self._encode(view.frames[chosen])
            event_features = view.features.tensor()[chosen]
            for frame, cosine, baseline in zip(
                chosen,
                frame_cosines(aligned.tensor()[chosen], proof),
                random_baseline(event_features, proof),
                strict=True,
            ):
                cosines[frame], baselines[frame] = cosine, baseline
        return decide(self.gate, cosines, baselines)

    @torch.inference_mode()
    def fill(
        self, view: EventView, aligned: VisualFeatures, decision: GateDecision, dense: VisualFeatures | None
    ) -> VisualFeatures:
        """Aligned frames where the gate accepts them, dense ones elsewhere; only those are encoded if `dense` is
        None.
        """
        keep = decision.accepted
        if dense is not None or all(keep):
            return aligned if dense is None else aligned.choose_frames(keep, dense)
        refused = [frame for frame, accepted in enumerate(keep) if not accepted]
        data = aligned.tensor()
        data[refused] = self._encode(view.frames[refused]).to(data.device, data.dtype)
        transforms = ("dense",) if not any(keep) else (*aligned.transforms, "dense where refused")
        made = VisualFeatures.from_tensor(data, space=self.space, transforms=transforms, source=view.source)
        return replace(made, occupancy=aligned.occupancy, density=aligned.density)

    def _encode(self, frames: np.ndarray) -> torch.Tensor:
        """The target tower's features of some frames, on the CPU."""
        processor, tower = self.towers[-1]
        return tower.encode(processor(frames)).cpu()


def counted(features: VisualFeatures, view: EventView, processor: Any) -> VisualFeatures:
    """Features with what the view knows of where the events lie in what a tower's pixel processor shows it."""
    if view.density is None:
        return features
    eight_bit = view.frames.dtype == np.uint8
    height, width = view.frames.shape[1:3] if eight_bit else view.frames.shape[2:]
    cells = view.density.shape[1]
    return replace(features, density=resampled(view.density, cells, cells, processor.window(height, width)))


@torch.inference_mode()
def adapted(adapter: Any, features: VisualFeatures) -> VisualFeatures:
    """Event features through an adapter, into the space of the tower it was fitted to."""
    aligned = adapter(features.tensor(adapter.device))
    transforms = (*features.transforms, "adapter")
    space = adapter.target_space
    made = VisualFeatures.from_tensor(aligned, space=space, transforms=transforms, source=features.source)
    return replace(made, occupancy=features.occupancy)


def spot_frames(source: str, frames: int, fraction: float) -> frozenset[int]:
    """Which frames are measured under policy "spot": a fixed fraction, chosen by the recording's hash."""
    count = math.ceil(fraction * frames)
    order = np.random.default_rng(int(source, 16)).permutation(frames)
    return frozenset(order[:count].tolist())
