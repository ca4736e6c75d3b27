"""Models: checkpoints of four video families as the parts a cascade places on different machines.

    load_checkpoint(path, parts=...) -> VisionLanguageModel      loading.py
        .pixels     PixelProcessor   frames -> Pixels            pixels.py
        .vision     VisionTower      Pixels -> raw features      vision_tower.py      may be shared between models
        .projector  Projector        raw -> visual embeddings    projector.py         each model its own
        .prompts    PromptBuilder    question -> Prompt          prompts.py
        .language   LanguageModel    embeddings -> logits, over a SlotCache          language.py, slot_cache.py
    load_event_encoder, load_adapter     the event branch                    event_encoder.py, adapter_kinds.py
    load_medusa, load_eagle_net          heads beside a target               medusa.py, eagle.py, head_folder.py
    load_compressor(path) -> Compressor  a drafter's visual tokens as fewer  compressor.py, visual_layout.py
    stage_sizes("7b")                    what the published sizes weigh      sizes.py

    read      checkpoint.py, architectures.py (library.py), weights_file.py; room.py: is there memory for it;
              stage_source.py: which directory a stage means; bundled.py: the bundled members, which family.py makes
    compute   block.py of linear.py and norm.py; over several devices layer_split.py
    sooner    compiled.py on a CPU; kernels.py (device_code.py), replay.py on a GPU

Names are resolved on first use: importing this package loads neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cascade_runtime.models.language import LanguageModel
    from cascade_runtime.models.loading import VisionLanguageModel, load_checkpoint
    from cascade_runtime.models.pixels import PixelProcessor, Pixels
    from cascade_runtime.models.projector import Projector
    from cascade_runtime.models.prompts import Prompt, PromptBuilder
    from cascade_runtime.models.sizes import StageSizes, stage_sizes
    from cascade_runtime.models.slot_cache import SlotCache
    from cascade_runtime.models.vision_tower import VisionTower

_HOMES = {
    "LanguageModel": "language",
    "PixelProcessor": "pixels",
    "Pixels": "pixels",
    "Projector": "projector",
    "Prompt": "prompts",
    "PromptBuilder": "prompts",
    "SlotCache": "slot_cache",
    "StageSizes": "sizes",
    "VisionLanguageModel": "loading",
    "VisionTower": "vision_tower",
    "load_checkpoint": "loading",
    "stage_sizes": "sizes",
}

__all__ = [
    "LanguageModel",
    "PixelProcessor",
    "Pixels",
    "Projector",
    "Prompt",
    "PromptBuilder",
    "SlotCache",
    "StageSizes",
    "VisionLanguageModel",
    "VisionTower",
    "load_checkpoint",
    "stage_sizes",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
