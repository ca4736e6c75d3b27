"""Checkpoints of published shapes with random weights, as `load_checkpoint` reads them: tokenizer, config, shards.

Weights are drawn on the device, layer by layer, so that 7B take seconds to make and never lie in memory whole. Towers
of the same seed are equal, and the features of one serve all models.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from cascade_runtime.models.architectures import LanguagePart, vision_module
from cascade_runtime.models.bundled import family_path
from cascade_runtime.models.projector import projector_module
from cascade_runtime.models.sizes import onevision_config

ENTRIES = 151_646  # of the published tokenizer: how many rows of the head are computed
_TOY_ENTRIES = 2_000
_SHARD_BYTES = 4_000_000_000
_FAMILY = "llava_onevision"
_ROOTS = {
    "decoder.": "model.language_model.",
    "lm_head.": "lm_head.",
    "vision.": "model.vision_tower.vision_model.",
    "mlp.": "model.multi_modal_projector.",
    "newline": "model.image_newline",
}
_COPIED = ("tokenizer_config.json",)
_TOY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


def write_checkpoint(size: str, folder: Path, device: str, *, frames: int, seed: int, toy: bool) -> float:
    """A checkpoint of the shape "0.5b", "7b" or "72b" in bfloat16; with `toy`, of a tiny one. Returns its GB.

    frames: pictures that a recording becomes.
    """
    folder.mkdir(parents=True)
    tokens = _write_tokenizer(folder, _TOY_ENTRIES if toy else ENTRIES)
    config = _config(size, tokens, toy=toy)
    generator = torch.Generator(device).manual_seed(seed)
    tower = torch.Generator(device).manual_seed(0)
    weights: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    count, held, total = 0, 0, 0

    def write() -> None:
        nonlocal count, held
        count += 1
        name = f"model-{count:05}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        weights.update(dict.fromkeys(shard, name))
        shard.clear()
        held = 0

    for name, shape in _shapes(config):
        drawn = _draw(name, shape, tower if name.startswith("model.vision_tower") else generator, device)
        shard[name] = drawn.cpu()
        held += drawn.nbytes
        total += drawn.nbytes
        if held > _SHARD_BYTES:
            write()
    write()
    if device == "cuda":
        torch.cuda.empty_cache()
    fields = config.to_dict() | {"architectures": ["LlavaOnevisionForConditionalGeneration"], "dtype": "bfloat16"}
    _write(folder / "config.json", fields)
    _write(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weights})
    side = config.vision_config.image_size
    _write(
        folder / "preprocessor_config.json",
        {
            "do_resize": False,
            "do_rescale": False,
            "do_normalize": False,
            "size": {"height": side, "width": side},
            "event_representation": {"name": "activity", "frames": frames, "size": side},
        },
    )
    return total / 1e9


def _config(size: str, tokens: dict[str, int], *, toy: bool) -> Any:
    config: Any = onevision_config(size)
    text, vision = config.text_config, config.vision_config
    config.image_token_index = config.image_token_id = tokens["<image>"]
    config.video_token_index = config.video_token_id = tokens["<video>"]
    text.bos_token_id, text.eos_token_id, text.pad_token_id = None, tokens["<|im_end|>"], tokens["<|endoftext|>"]
    vision.vision_use_head = False
    if toy:
        fields = config.to_dict()
        layers = {"num_hidden_layers": 1 if size == "0.5b" else 3}
        fields["text_config"] |= _TOY | layers | {"num_key_value_heads": 2, "vocab_size": _TOY_ENTRIES + 48}
        fields["text_config"]["layer_types"] = ["full_attention"] * layers["num_hidden_layers"]
        fields["vision_config"] |= _TOY | {"image_size": 56, "patch_size": 14}
        config = type(config).from_dict(fields)
    return config


def _shapes(config: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Stored name and shape of every tensor; a head that is tied to the embedding is not stored."""
    with torch.device("meta"):
        parts = {"": LanguagePart(config), "vision.": vision_module(_FAMILY, config)}
        parts |= {"projector": projector_module(_FAMILY, config)}
    for prefix, module in parts.items():
        for local, tensor in module.state_dict().items():
            name = local if prefix == "projector" else prefix + local
            if name == "lm_head.weight" and config.tie_word_embeddings:
                continue
            root = next(root for root in _ROOTS if name.startswith(root))
            yield _ROOTS[root] + name.removeprefix(root), tuple(tensor.shape)


def _draw(name: str, shape: tuple[int, ...], generator: torch.Generator, device: str) -> torch.Tensor:
    """Small numbers; norms as they are before training."""
    if name.endswith("bias"):
        return torch.zeros(shape, dtype=torch.bfloat16, device=device)
    if "norm" in name:
        return torch.ones(shape, dtype=torch.bfloat16, device=device)
    return torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(std=0.02, generator=generator)


def _write_tokenizer(folder: Path, entries: int) -> dict[str, int]:
    """The bundled tokenizer with words that no text makes use of, up to so many entries. Returns its added tokens."""
    source = family_path("heavy")
    fields = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary, added = fields["model"]["vocab"], fields["added_tokens"]
    for number in range(len(vocabulary), entries - len(added)):
        vocabulary[f"w{number}"] = number
    for number, token in enumerate(added):
        token["id"] = len(vocabulary) + number
    _write(folder / "tokenizer.json", fields)
    for name in _COPIED:
        (folder / name).write_bytes((source / name).read_bytes())
    return {token["content"]: token["id"] for token in added}


def _write(path: Path, fields: dict[str, Any]) -> None:
    path.write_text(json.dumps(fields), encoding="utf-8")
