"""VisionTower: pixels to the raw features that several models may share, and the tag that says whose they are.

Raw means before any projector or pooling: for the LLaVA families the hidden states of the configured layer (for
SigLIP that is not `last_hidden_state`, which is normalised once more), CLS dropped where the family drops it; for
Qwen2-VL the input of the patch merger, one row of P = h * w patches per temporal step. Towers of one family are
fine-tuned per size, so the tag is a hash of weights and configuration, and a projector refuses another tower's tag.
"""

from __future__ import annotations

from typing import Any

import torch

from cascade_runtime.errors import InputError
from cascade_runtime.models.pixels import Pixels

FRAMES_PER_PASS = 8
"""Frames that go through a tower at once: every layer's hidden states are held meanwhile."""


class VisionTower:
    """One tower. `space` names it, `positions` is P (None where it follows the frame size), `feature_size` is Dv."""

    def __init__(self, module: Any, config: Any, *, family: str, space: str) -> None:
        self.module = module.eval()
        self.family = family
        self.space = space
        self.positions, self.feature_size = raw_shape(family, config)
        layer = getattr(config, "vision_feature_layer", -1)
        self._layers: list[int] = [layer] if isinstance(layer, int) else list(layer)
        self._drop_cls = drops_cls(family, config)
        self._image_size: int | None = getattr(config.vision_config, "image_size", None)

    @torch.inference_mode()
    def encode(self, pixels: Pixels) -> torch.Tensor:
        """Pixels of one video to raw features (F, P, Dv) on the tower's device.

        Raises InputError for another frame size.
        """
        weight = next(self.module.parameters())
        values = pixels.values.to(weight.device, weight.dtype)
        if self.family == "qwen2_vl":
            return self._encode_patches(values, pixels.grid)
        size = self._image_size
        if values.dim() != 4 or values.shape[1:] != (3, size, size):
            raise InputError("pixels", tuple(values.shape), f"(frames, 3, {size}, {size})")
        return torch.cat([self._encode_frames(chunk) for chunk in values.split(FRAMES_PER_PASS)])

    def _encode_frames(self, values: torch.Tensor) -> torch.Tensor:
        states = self.module(values, output_hidden_states=True).hidden_states
        raw = torch.cat([states[layer] for layer in self._layers], dim=-1)
        return raw[:, 1:] if self._drop_cls else raw

    def _encode_patches(self, values: torch.Tensor, grid: tuple[int, int, int] | None) -> torch.Tensor:
        if grid is None or values.dim() != 2 or values.shape[0] != grid[0] * grid[1] * grid[2]:
            raise InputError(
                "pixels", (tuple(values.shape), grid), "patches (t * h * w, size) with their grid (t, h, w)"
            )
        grid_thw = torch.tensor([grid], device=values.device)
        patches = self.module(values, grid_thw=grid_thw).last_hidden_state
        return patches.view(grid[0], grid[1] * grid[2], -1)


def drops_cls(family: str, config: Any) -> bool:
    """Whether video features leave out the tower's first position. Video-LLaVA keeps it whatever its config says."""
    return family in ("llava_onevision", "llava_next_video") and config.vision_feature_select_strategy == "default"


def raw_shape(family: str, config: Any) -> tuple[int | None, int]:
    """(positions P per frame or None, Dv) of a family's raw features, from its configuration alone."""
    vision = config.vision_config
    if family == "qwen2_vl":
        return None, vision.embed_dim
    layers = 1 if isinstance(config.vision_feature_layer, int) else len(config.vision_feature_layer)
    cls = 1 if vision.model_type == "clip_vision_model" else 0
    side = vision.image_size // vision.patch_size
    return side * side + cls - (1 if drops_cls(family, config) else 0), vision.hidden_size * layers
