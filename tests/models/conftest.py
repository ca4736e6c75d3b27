"""One tiny checkpoint per family for the whole session, and the library's own model of the same directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import FAMILIES, tiny_checkpoint
from transformers.models.llava_next_video.modeling_llava_next_video import LlavaNextVideoForConditionalGeneration
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionForConditionalGeneration
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLForConditionalGeneration
from transformers.models.video_llava.modeling_video_llava import VideoLlavaForConditionalGeneration

from cascade_runtime.models import Pixels, VisionLanguageModel, load_checkpoint

LIBRARY = {
    "llava_onevision": LlavaOnevisionForConditionalGeneration,
    "llava_next_video": LlavaNextVideoForConditionalGeneration,
    "video_llava": VideoLlavaForConditionalGeneration,
    "qwen2_vl": Qwen2VLForConditionalGeneration,
}

SEEDS = {"qwen2_vl": 6}  # with seed 0 it repeats one token for ever


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """family -> directory of its tiny checkpoint, saved once."""
    saved: dict[str, Path] = {}

    def of(family: str) -> Path:
        if family not in saved:
            saved[family] = tiny_checkpoint(
                family, tmp_path_factory.mktemp(family), seed=SEEDS.get(family, 0), scale=4.0
            )
        return saved[family]

    return of


@pytest.fixture(scope="session", params=FAMILIES)
def pair(request: pytest.FixtureRequest, checkpoint: Callable[[str], Path]) -> tuple[VisionLanguageModel, Any]:
    """(our loaded parts, the library's unchanged model) of one family's directory."""
    directory = checkpoint(request.param)
    return load_checkpoint(directory), LIBRARY[request.param].from_pretrained(directory).eval()


@pytest.fixture(scope="session")
def frames() -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (3, 60, 84, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def video_inputs() -> Callable[[Any, Pixels, torch.Tensor], dict[str, Any]]:
    """(our model, its pixels, ids (n,)) -> the library's keyword arguments for the same input."""

    def of(model: VisionLanguageModel, pixels: Pixels, ids: torch.Tensor) -> dict[str, Any]:
        if model.family != "qwen2_vl":
            return {"input_ids": ids[None], "pixel_values_videos": pixels.values[None]}
        return {
            "input_ids": ids[None],
            "pixel_values_videos": pixels.values,
            "video_grid_thw": torch.tensor([pixels.grid]),
            "mm_token_type_ids": 2 * (ids == model.config.video_token_id).long()[None],
        }

    return of
