"""`facts_of`: what the launcher checks and prints of a language stage."""

from __future__ import annotations

from typing import Any

import torch

from actors.host import process
from cascade_runtime.decoding.level import Level


def facts_of(level: Level) -> dict[str, Any]:
    """Plain data: its tokenizer and ends, where it runs, and what memory it takes."""
    language = level.model.language
    return {
        "name": level.name,
        "tokenizer": level.tokenizer_tag(),
        "ends": level.ends,
        **process(language.device),
        "weight_bytes": language.weight_bytes,
        "kv_bytes": level.decoder.cache.nbytes,
        "device": str(language.device),
        "threads": torch.get_num_threads(),
    }
