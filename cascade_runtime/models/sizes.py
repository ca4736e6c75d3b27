"""What the published LLaVA-OneVision sizes weigh, read off the real modules on the meta device: no weight is allocated.

    stage_sizes("72b").part_bytes        {"vision": ..., "projector": ..., "language": ...} in bfloat16
    stage_sizes("72b").kv_bytes_per_token

Configurations of llava-hf/llava-onevision-qwen2-{0.5b,7b,72b}-ov-hf; the head's rows differ inside the family.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.models.llava_onevision.configuration_llava_onevision import LlavaOnevisionConfig

from cascade_runtime.errors import ConfigError
from cascade_runtime.models.architectures import LanguagePart, vision_module
from cascade_runtime.models.projector import projector_module

BYTES_PER_NUMBER = 2
_FAMILY = "llava_onevision"
TEXT_CONFIGS: dict[str, dict[str, Any]] = {
    "0.5b": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 152000,
        "tie_word_embeddings": True,
    },
    "7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152128,
    },
    "72b": {
        "hidden_size": 8192,
        "intermediate_size": 29568,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 152128,
    },
}


@dataclass(frozen=True)
class StageSizes:
    """One size. Shapes by part and parameter name; bytes at 2 per number, tied weights counted once.

    raw_bytes_per_frame: raw tower features, which may be shared; visual_bytes_per_frame: the projected ones.
    """

    size: str
    shapes: dict[str, dict[str, tuple[int, ...]]]
    part_bytes: dict[str, int]
    kv_bytes_per_token: int
    lm_head_rows: int
    visual_tokens_per_frame: int
    raw_bytes_per_frame: int
    visual_bytes_per_frame: int


def onevision_config(size: str) -> LlavaOnevisionConfig:
    """The published configuration of "0.5b", "7b" or "72b". Raises ConfigError for another."""
    if size not in TEXT_CONFIGS:
        raise ConfigError("size", size, f"one of {sorted(TEXT_CONFIGS)}")
    text = {
        "model_type": "qwen2",
        "max_position_embeddings": 32768,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        **TEXT_CONFIGS[size],
    }
    return LlavaOnevisionConfig(text_config=text)


def stage_sizes(size: str) -> StageSizes:
    """Names, shapes and bytes of every part of LLaVA-OneVision "0.5b", "7b" or "72b"; else ConfigError."""
    config: Any = onevision_config(size)
    with torch.device("meta"):
        modules: dict[str, nn.Module] = {
            "vision": vision_module(_FAMILY, config),
            "projector": projector_module(_FAMILY, config),
            "language": LanguagePart(config),
        }
    shapes = {part: {n: tuple(p.shape) for n, p in m.named_parameters()} for part, m in modules.items()}
    if config.tie_word_embeddings:
        del shapes["language"]["lm_head.weight"]
    text, vision = config.text_config, config.vision_config
    head_dim = text.hidden_size // text.num_attention_heads
    side = vision.image_size // vision.patch_size
    pooled = ((side + 1) // 2) ** 2
    return StageSizes(
        size=size,
        shapes=shapes,
        part_bytes={part: BYTES_PER_NUMBER * sum(map(_numbers, s.values())) for part, s in shapes.items()},
        kv_bytes_per_token=BYTES_PER_NUMBER * 2 * text.num_hidden_layers * text.num_key_value_heads * head_dim,
        lm_head_rows=text.vocab_size,
        visual_tokens_per_frame=pooled,
        raw_bytes_per_frame=BYTES_PER_NUMBER * side * side * vision.hidden_size,
        visual_bytes_per_frame=BYTES_PER_NUMBER * pooled * text.hidden_size,
    )


def _numbers(shape: tuple[int, ...]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count
