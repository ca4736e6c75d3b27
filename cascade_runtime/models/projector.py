"""Projector: raw tower output (F, P, Dv) to a model's own visual embeddings (N, D), pooling and newline included.

The order differs by family and does not commute (GELU lies between): OneVision projects, pools bilinearly to half and
adds one newline per video; NeXT-Video pools first; Video-LLaVA keeps every position with CLS; Qwen2-VL merges 2x2
neighbours that its processor already laid side by side. Equal to the unchanged library's `get_video_features`
(tests/models/test_projector.py).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from cascade_runtime.errors import FeatureSpaceError
from cascade_runtime.models.library import library_class

_ONEVISION = "llava_onevision.modeling_llava_onevision"
_NEXT_VIDEO = "llava_next_video.modeling_llava_next_video"


class OnevisionProjection(nn.Module):
    """MLP, bilinear pooling of the grid to half (rounded up), one newline embedding at the end of the video."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.mlp = library_class(f"{_ONEVISION}:LlavaOnevisionMultiModalProjector")(config)
        self.newline = nn.Parameter(torch.zeros(config.text_config.hidden_size))
        self.side: int = config.vision_config.image_size // config.vision_config.patch_size

    def forward(self, raw_FPC: torch.Tensor) -> torch.Tensor:
        projected_FPD = self.mlp(raw_FPC)
        frames, _, hidden = projected_FPD.shape
        half = math.ceil(self.side / 2)
        grid = projected_FPD.view(frames, self.side, self.side, hidden).permute(0, 3, 1, 2)
        pooled = F.interpolate(grid.contiguous(), size=(half, half), mode="bilinear")
        return torch.cat([pooled.permute(0, 2, 3, 1).reshape(-1, hidden), self.newline[None]])


class NextVideoProjection(nn.Module):
    """Spatial pooling of the raw grid, then the MLP; no newline for video."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.resampler = library_class(f"{_NEXT_VIDEO}:LlavaNextVideoPooler")(config)
        self.mlp = library_class(f"{_NEXT_VIDEO}:LlavaNextVideoMultiModalProjector")(config)

    def forward(self, raw_FPC: torch.Tensor) -> torch.Tensor:
        return self.mlp(self.resampler(raw_FPC)).flatten(0, 1)


class VideoLlavaProjection(nn.Module):
    """The MLP alone, over every position with CLS."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.mlp = library_class("video_llava.modeling_video_llava:VideoLlavaMultiModalProjector")(config)

    def forward(self, raw_FPC: torch.Tensor) -> torch.Tensor:
        return self.mlp(raw_FPC).flatten(0, 1)


class Qwen2VLProjection(nn.Module):
    """The patch merger: normalise, join 2x2 neighbours, MLP."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        vision = config.vision_config
        merger = library_class("qwen2_vl.modeling_qwen2_vl:PatchMerger")
        self.merger = merger(vision.hidden_size, vision.embed_dim, vision.spatial_merge_size)

    def forward(self, raw_FPC: torch.Tensor) -> torch.Tensor:
        return self.merger(raw_FPC)


_PROJECTIONS: dict[str, type[nn.Module]] = {
    "llava_onevision": OnevisionProjection,
    "llava_next_video": NextVideoProjection,
    "video_llava": VideoLlavaProjection,
    "qwen2_vl": Qwen2VLProjection,
}


def projector_module(family: str, config: Any) -> nn.Module:
    """The family's projection, its parameters named as `architectures.split_name` names them."""
    return _PROJECTIONS[family](config)


class Projector:
    """One model's projection.

    `space` is the raw space it was trained on, `feature_size` its Dv, `hidden_size` its D.
    """

    def __init__(
        self, module: nn.Module, *, space: str, positions: int | None, feature_size: int, hidden_size: int
    ) -> None:
        self.module = module.eval()
        self.space = space
        self.positions = positions
        self.feature_size = feature_size
        self.hidden_size = hidden_size

    @torch.inference_mode()
    def project(self, raw: torch.Tensor) -> torch.Tensor:
        """Raw features (F, P, Dv) of one video, floating, any device, to its visual embeddings (N, D).

        Raises FeatureSpaceError where the shape is not what this model's tower gives.
        """
        allowed = f"(frames, {self.positions or 'positions'}, {self.feature_size})"
        wrong_positions = self.positions is not None and raw.dim() == 3 and raw.shape[1] != self.positions
        if raw.dim() != 3 or raw.shape[0] < 1 or raw.shape[2] != self.feature_size or wrong_positions:
            raise FeatureSpaceError("raw features", tuple(raw.shape), allowed)
        weight = next(self.module.parameters())
        return self.module(raw.to(weight.device, weight.dtype))
