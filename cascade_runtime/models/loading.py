"""load_checkpoint: a Hugging Face directory to the parts of a vision-language model, each of which may live elsewhere.

An encoder needs ("vision",), a language stage ("language", "projector"); only their tensors are read. Modules are
built on the meta device, given their weights, and left in evaluation mode; buffers that no checkpoint stores are
computed as the library does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cascade_runtime.errors import ConfigError, InputError
from cascade_runtime.models.architectures import PARTS, LanguagePart, family_of, read_config, vision_module
from cascade_runtime.models.checkpoint import Checkpoint, check_size, read_json
from cascade_runtime.models.language import LanguageModel
from cascade_runtime.models.layer_split import split_layers
from cascade_runtime.models.library import library_class
from cascade_runtime.models.pixels import PixelProcessor
from cascade_runtime.models.projector import Projector, projector_module
from cascade_runtime.models.prompts import Prompt, PromptBuilder
from cascade_runtime.models.room import check_room
from cascade_runtime.models.vision_tower import VisionTower, raw_shape

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}


@dataclass(frozen=True, kw_only=True)
class VisionLanguageModel:
    """The loaded parts of one checkpoint; a part that was not asked for is None.

    `space` names the tower's raw features.
    """

    family: str
    config: Any
    tokenizer: Any
    prompts: PromptBuilder
    pixels: PixelProcessor
    space: str
    ends: tuple[int, ...]
    language: LanguageModel | None = None
    vision: VisionTower | None = None
    projector: Projector | None = None
    weight_bytes: dict[str, int] = field(default_factory=dict)

    @torch.inference_mode()
    def embed_prompt(self, prompt: Prompt, visual: torch.Tensor) -> torch.Tensor:
        """A prompt's embeddings (n, D) with `visual` (num_visual, D) at its visual positions. Raises InputError."""
        if self.language is None:
            raise ConfigError("parts", "no language part", "load_checkpoint(..., parts=('language', ...))")
        if tuple(visual.shape) != (prompt.num_visual, self.language.hidden_size):
            raise InputError("visual", tuple(visual.shape), str((prompt.num_visual, self.language.hidden_size)))
        embeds = self.language.embed(prompt.input_ids.tolist())
        embeds[prompt.visual_mask.to(embeds.device)] = visual.to(embeds.device, embeds.dtype)
        return embeds


def load_checkpoint(
    path: str | Path,
    *,
    parts: Sequence[str] = PARTS,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str = "auto",
    layer_devices: Sequence[torch.device | str] = (),
) -> VisionLanguageModel:
    """Load the asked-for parts of a directory saved by `save_pretrained` (the families of architectures.py).

    layer_devices: spread the language part's layers over these, in order (`layer_split.py`), `device` the first.

    dtype "auto" is float32 on a CPU (bfloat16 is emulated on most) and the stored type elsewhere.
    Raises ConfigError naming the file and what is wrong with it; never reads a pickle, runs their code or goes to a
    network.
    """
    directory = Path(path)
    if not directory.is_dir():
        raise ConfigError("path", str(path), "an existing local directory with config.json and model.safetensors")
    wrong = [part for part in parts if part not in PARTS]
    if wrong or isinstance(parts, str) or not parts:
        raise ConfigError("parts", parts, f"some of {PARTS}")
    place, kind = torch.device(device), _dtype(dtype, torch.device(device))
    if place.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # float32 in a tower's convolution too, as everywhere else
    fields = read_json(directory / "config.json")
    if fields.get("quantization_config"):
        raise ConfigError(
            "quantization_config", fields["quantization_config"], "none: quantised checkpoints are not supported"
        )
    family = family_of(fields)
    config = read_config(family, fields)
    checkpoint = Checkpoint(directory, family)
    tokenizer = _tokenizer(directory)
    ends = _ends(config, tokenizer, directory)
    space = checkpoint.identity("vision", _tower_kind(config), _tower_facts(config))
    loaded: dict[str, Any] = {}
    weight_bytes: dict[str, int] = {}
    for part in dict.fromkeys(parts):
        module = _build(part, family, config)
        where = split_layers(module, [torch.device(each) for each in layer_devices]) if part == "language" else None
        for there, share in checkpoint.part_bytes(part, kind, where or (lambda name: place)).items():
            check_room(f"{directory.name} [{part}]", share, there)
        weight_bytes[part] = checkpoint.fill(module, part, device=where or (lambda name: place), dtype=kind)
        _compute_buffers(module, place)
        if part == "language":
            loaded[part] = _language(module, config, tokenizer, ends, family)
        elif part == "vision":
            loaded[part] = VisionTower(module, config, family=family, space=space)
        else:
            loaded[part] = _projector(module, config, family, space)
    return VisionLanguageModel(
        family=family,
        config=config,
        tokenizer=tokenizer,
        prompts=PromptBuilder(tokenizer, family=family, config=config),
        pixels=PixelProcessor(_preprocessor_fields(directory), family=family),
        space=space,
        ends=ends,
        weight_bytes=weight_bytes,
        **loaded,
    )


def _projector(module: nn.Module, config: Any, family: str, space: str) -> Projector:
    positions, feature_size = raw_shape(family, config)
    hidden_size = config.text_config.hidden_size
    return Projector(module, space=space, positions=positions, feature_size=feature_size, hidden_size=hidden_size)


def _build(part: str, family: str, config: Any) -> nn.Module:
    with torch.device("meta"):
        if part == "language":
            return LanguagePart(config)
        return vision_module(family, config) if part == "vision" else projector_module(family, config)


def _compute_buffers(module: nn.Module, device: torch.device) -> None:
    """Fill buffers that checkpoints do not store (rotary frequencies, position ids) as the library initialises them."""
    for tensor in module.parameters():
        tensor._is_hf_initialized = True  # type: ignore[attr-defined]  # the library then leaves the loaded weight alone
    for child in module.modules():
        for name, buffer in child._buffers.items():
            if buffer is not None and buffer.is_meta:
                child._buffers[name] = torch.empty_like(buffer, device=device)
    for model in (module, *module.children()):
        if hasattr(model, "initialize_weights"):
            model.initialize_weights()  # type: ignore[operator]


def _ends(config: Any, tokenizer: Any, directory: Path) -> tuple[int, ...]:
    """Ids that end an answer, from generation_config.json or the text config or the tokenizer."""
    text = config.text_config
    if len(tokenizer) > text.vocab_size:
        raise ConfigError("tokenizer", len(tokenizer), f"at most {text.vocab_size} ids, the rows of the embedding")
    generation = directory / "generation_config.json"
    eos = read_json(generation).get("eos_token_id") if generation.is_file() else None
    eos = next((e for e in (eos, text.eos_token_id, tokenizer.eos_token_id) if e is not None), None)
    ids: tuple[Any, ...] = tuple(eos) if isinstance(eos, list) else (eos,)
    if not ids or not all(isinstance(e, int) and 0 <= e < len(tokenizer) for e in ids):
        raise ConfigError("eos_token_id", eos, f"ids in 0..{len(tokenizer) - 1}")
    return ids


def _language(module: Any, config: Any, tokenizer: Any, ends: tuple[int, ...], family: str) -> LanguageModel:
    text = config.text_config
    return LanguageModel(
        module.decoder,
        module.lm_head,
        vocab_size=len(tokenizer),
        family=family,
        eos_token_ids=ends,
        position_axes=3 if family == "qwen2_vl" else 1,
        max_positions=text.max_position_embeddings,
    )


def _tokenizer(directory: Path) -> Any:
    if not any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise ConfigError(
            str(directory), "no tokenizer", "tokenizer.json (or tokenizer.model, vocab.json and merges.txt)"
        )
    check_size(directory / "tokenizer.json")
    try:
        kind = library_class("auto.tokenization_auto:AutoTokenizer")
        tokenizer = kind.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise ConfigError(
            str(directory), f"{type(error).__name__}: {error}", "a tokenizer the library can read"
        ) from error
    if not tokenizer.is_fast:
        raise ConfigError(str(directory), type(tokenizer).__name__, "a tokenizer with tokenizer.json")
    return tokenizer


def _preprocessor_fields(directory: Path) -> dict[str, Any]:
    """The fields that describe video frames: the video processor's file first, as the library reads them."""
    video = directory / "video_preprocessor_config.json"
    if video.is_file():
        return read_json(video)
    processor = directory / "processor_config.json"
    nested = read_json(processor).get("video_processor") if processor.is_file() else None
    return nested if isinstance(nested, dict) else read_json(directory / "preprocessor_config.json")


def _dtype(dtype: torch.dtype | str, device: torch.device) -> torch.dtype | None:
    """The type to load as; None keeps the stored one."""
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else None
    chosen = DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if chosen not in DTYPES.values():
        raise ConfigError("dtype", dtype, f"auto or one of {sorted(DTYPES)}")
    return chosen  # type: ignore[return-value]


def _tower_kind(config: Any) -> str:
    return str(config.vision_config.model_type).removesuffix("_vision_model").removesuffix("_vision")


def _tower_facts(config: Any) -> dict[str, Any]:
    """What besides weights decides the raw features."""
    facts = config.vision_config.to_dict()
    for name in ("dtype", "torch_dtype", "transformers_version", "_name_or_path", "architectures"):
        facts.pop(name, None)
    facts["layer"] = getattr(config, "vision_feature_layer", None)
    facts["select"] = getattr(config, "vision_feature_select_strategy", None)
    return facts
