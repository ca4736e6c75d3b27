"""The four video families that load: their configurations, the library's classes for each part, and tensor names.

| family           | vision part             | projector part                            | language part |
|------------------|-------------------------|-------------------------------------------|---------------|
| llava_onevision  | vision_tower (SigLIP)   | 2-layer MLP, then bilinear 2x2, newline   | Qwen2         |
| llava_next_video | vision_tower (CLIP)     | average 2x2, then 2-layer MLP             | Llama, Qwen2  |
| video_llava      | video_tower (CLIP)      | 2-layer MLP                               | Llama         |
| qwen2_vl         | visual without merger   | visual.merger                             | Qwen2-VL text |

Checkpoints name their tensors in three styles (published, saved by older releases, saved by the current one);
`split_name` brings all of them to (part, name within the part). Classes are the library's own and unchanged.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from cascade_runtime.errors import ConfigError
from cascade_runtime.models.library import library_class

MAX_LAYERS = 1000
PARTS = ("language", "vision", "projector")

CONFIGS = {
    "llava_onevision": "llava_onevision.configuration_llava_onevision:LlavaOnevisionConfig",
    "llava_next_video": "llava_next_video.configuration_llava_next_video:LlavaNextVideoConfig",
    "video_llava": "video_llava.configuration_video_llava:VideoLlavaConfig",
    "qwen2_vl": "qwen2_vl.configuration_qwen2_vl:Qwen2VLConfig",
}
ARCHITECTURES = {
    "LlavaOnevisionForConditionalGeneration": "llava_onevision",
    "LlavaNextVideoForConditionalGeneration": "llava_next_video",
    "VideoLlavaForConditionalGeneration": "video_llava",
    "Qwen2VLForConditionalGeneration": "qwen2_vl",
}
_DECODERS = {
    "qwen2": "qwen2.modeling_qwen2:Qwen2Model",
    "llama": "llama.modeling_llama:LlamaModel",
    "qwen2_vl_text": "qwen2_vl.modeling_qwen2_vl:Qwen2VLTextModel",
}
_TOWERS = {
    "siglip_vision_model": "siglip.modeling_siglip:SiglipVisionModel",
    "clip_vision_model": "clip.modeling_clip:CLIPVisionModel",
    "qwen2_vl_vision": "qwen2_vl.modeling_qwen2_vl:Qwen2VisionTransformerPretrainedModel",
    "qwen2_vl": "qwen2_vl.modeling_qwen2_vl:Qwen2VisionTransformerPretrainedModel",
}
_NEVER_TAKEN = frozenset(
    ("auto_map", "quantization_config", "attn_implementation", "_attn_implementation", "_attn_implementation_internal")
)
_LLAVA_ROOTS = (
    r"(vision_tower|video_tower|image_tower|multi_modal_projector|image_newline|language_model|vision_resampler)"
)
_LEFT_OVER_BUFFERS = re.compile(r"(rotary_emb\.inv_freq|rotary_pos_emb\.inv_freq|embeddings\.position_ids)$")


def family_of(config: dict[str, Any]) -> str:
    """The family a config.json names by "architectures", else by "model_type". Raises ConfigError."""
    named = config.get("architectures")
    if isinstance(named, list) and named:
        if len(named) != 1 or named[0] not in ARCHITECTURES:
            raise ConfigError("architectures", named, f"one of {sorted(ARCHITECTURES)}")
        return ARCHITECTURES[named[0]]
    if config.get("model_type") not in CONFIGS:
        raise ConfigError("model_type", config.get("model_type"), f"one of {sorted(CONFIGS)}")
    return str(config["model_type"])


def read_config(family: str, fields: dict[str, Any]) -> Any:
    """The library's configuration object from config.json's fields, without what would name remote code or kernels.

    Raises ConfigError for fields that contradict each other or describe an absurd number of layers.
    """
    fields = _without(fields, _NEVER_TAKEN)
    if fields.get("model_type", family) != family:
        raise ConfigError("model_type", fields["model_type"], f"{family!r}, as architectures says")
    for part in (fields, fields.get("text_config"), fields.get("vision_config")):
        for name in ("num_hidden_layers", "depth"):  # before the library builds a list of that length
            if isinstance(part, dict) and name in part and not _is_layer_count(part[name]):
                raise ConfigError(name, part[name], f"an integer in 1..{MAX_LAYERS}")
    kind = library_class(CONFIGS[family])
    allowed = f"a valid {kind.__name__}"
    try:
        return kind.from_dict(fields)
    except Exception as error:  # the library's strict dataclasses raise many types of their own
        raise ConfigError("config.json", f"{type(error).__name__}: {error}", allowed) from error


def _is_layer_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_LAYERS


def _without(fields: Any, names: frozenset[str]) -> Any:
    if isinstance(fields, dict):
        return {key: _without(value, names) for key, value in fields.items() if key not in names}
    return fields


class LanguagePart(nn.Module):
    """Decoder and head under the names that `split_name` gives them."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        text = config.text_config
        self.decoder = _class_for(_DECODERS, "text_config.model_type", text.model_type)(text)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.tied = bool(config.tie_word_embeddings)


def vision_module(family: str, config: Any) -> Any:
    """The family's tower, without weights of its projector."""
    vision = config.vision_config
    tower = _class_for(_TOWERS, "vision_config.model_type", vision.model_type)(vision)
    if family == "qwen2_vl":
        tower.merger = nn.Identity()  # the merger is the projector part: its input is what models may share
    return tower


def split_name(family: str, name: str) -> tuple[str, str] | None:
    """(part, name within it) of a tensor; part "unused" for what video never needs; None for a name no family has."""
    if _LEFT_OVER_BUFFERS.search(name):
        return ("unused", name)
    if family == "qwen2_vl":
        return _split_qwen2_vl(name)
    if re.match(rf"model\.{_LLAVA_ROOTS}\b", name):
        name = name.removeprefix("model.")
    if name in ("lm_head.weight", "language_model.lm_head.weight"):
        return ("language", "lm_head.weight")
    root, _, rest = name.partition(".")
    if root == "language_model":
        return ("language", "decoder." + rest.removeprefix("model."))
    tower = "video_tower" if family == "video_llava" else "vision_tower"
    if root == tower:
        return ("vision", rest.removeprefix("vision_model."))
    if root == "image_tower" and family == "video_llava":
        return ("unused", name)
    if root == "multi_modal_projector":
        return ("projector", "mlp." + rest)
    if name == "image_newline" and family != "video_llava":
        return ("projector", "newline") if family == "llava_onevision" else ("unused", name)
    if root == "vision_resampler" and family == "llava_next_video":
        return ("projector", "resampler." + rest)
    return None


def _split_qwen2_vl(name: str) -> tuple[str, str] | None:
    if name == "lm_head.weight":
        return ("language", name)
    if name.startswith(("visual.", "model.visual.")):
        rest = name.removeprefix("model.").removeprefix("visual.")
        return ("projector", rest) if rest.startswith("merger.") else ("vision", rest)
    if name.startswith("model."):
        return ("language", "decoder." + name.removeprefix("model.").removeprefix("language_model."))
    return None


def _class_for(classes: dict[str, str], field: str, kind: str) -> Any:
    if kind not in classes:
        raise ConfigError(field, kind, f"one of {sorted(classes)}")
    return library_class(classes[kind])
