"""`ModelSize`: what one model weighs and what a token of it computes, from its config.json alone.

    size_of(stage)     of a recipe's stage: a bundled member, a directory, or a published name whose directory is absent

Counts follow the library's modules (tests compare them with the meta device). Nothing is downloaded and no weight is
read; torch is not needed.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cascade_runtime.config import StageConfig
from cascade_runtime.config.checks import integer
from cascade_runtime.errors import ConfigError

_FAMILY = Path(__file__).parents[1] / "family"
_PUBLISHED = Path(__file__).parent / "published.toml"
_JSON_BYTES = 1 << 20


@dataclass(frozen=True)
class ModelSize:
    """Numbers (parameters) by part. kv: numbers held per position. idle: numbers of `language` that a step does not
    read (input embeddings of their own). layer: numbers of one of `layers`; hidden: that leave it per token. attention:
    heads x head size x layers. positions: that the tower computes per frame; visual_tokens: that the language model is
    given per frame.
    """

    name: str
    language: int = 0
    projector: int = 0
    vision: int = 0
    idle: int = 0
    layers: int = 0
    kv: int = 0
    attention: int = 0
    positions: int = 0
    visual_tokens: int = 0
    feature_size: int = 0
    layer: int = 0
    hidden: int = 0

    @property
    def ends(self) -> int:
        """Numbers of `language` outside its layers: embeddings, last norm, head."""
        return self.language - self.layers * self.layer


def size_of(stage: StageConfig) -> ModelSize:
    """The size of a stage's checkpoint. Raises `ConfigError` where there is no configuration of it."""
    where = stage.where
    if not stage.checkpoint:
        raise ConfigError(f"{where}.checkpoint", stage.checkpoint, "a checkpoint: an emulated stage weighs nothing")
    if stage.drafter == "lookup":
        raise ConfigError(f"{where}.drafter", "lookup", "model: what earlier answers will bring cannot be planned")
    directory = checkpoint_directory(stage)
    name = Path(stage.checkpoint).name
    if (directory / "config.json").is_file():
        return read_size(_read_json(directory / "config.json"), name, where)
    if name in published():
        return read_size(published()[name], name, where)
    allowed = f"a directory with a config.json, or one of {', '.join(sorted(published()))}"
    raise ConfigError(f"{where}.checkpoint", stage.checkpoint, allowed)


def checkpoint_directory(stage: StageConfig) -> Path:
    """Where a stage's checkpoint is, or would be."""
    directory = _FAMILY / stage.family_member if stage.family_member else stage.path
    assert directory is not None
    return directory


@cache
def published() -> dict[str, dict[str, Any]]:
    """Configurations of published models by the last part of their name."""
    return tomllib.loads(_PUBLISHED.read_text())


def read_size(config: Mapping[str, Any], name: str, where: str) -> ModelSize:
    """The size that a config.json describes. Raises `ConfigError` naming the field that is missing or absurd."""
    fields = _Fields(config, where)
    kind = config.get("model_type")
    if kind == "cascade_event_encoder":
        return _encoder(fields, name)
    if kind == "cascade_adapter":
        return _adapter(fields, name)
    if kind not in ("llava_onevision", "video_llava", "llava_next_video"):
        allowed = "llava_onevision, video_llava, llava_next_video, cascade_event_encoder, cascade_adapter"
        raise ConfigError(f"{where}.model_type", kind, allowed)
    text, vision = fields.part("text_config"), fields.part("vision_config")
    hidden, layers, heads = text("hidden_size"), text("num_hidden_layers", 1000), text("num_attention_heads")
    kv_heads, vocab, inner = text("num_key_value_heads", default=heads), text("vocab_size"), text("intermediate_size")
    head = text("head_dim", default=hidden // heads)
    bias = (heads + 2 * kv_heads) * head if text.table.get("model_type") == "qwen2" else 0
    attention = 2 * hidden * heads * head + 2 * hidden * kv_heads * head + bias
    tied = bool(config.get("tie_word_embeddings", text.table.get("tie_word_embeddings", False)))
    layer = attention + 3 * hidden * inner + 2 * hidden
    width = vision("hidden_size")
    side = vision("image_size") // vision("patch_size")
    newline, positions, tokens = 0, side * side, side * side
    if kind == "llava_onevision":
        newline, tokens = hidden, ((side + 1) // 2) ** 2
    elif kind == "video_llava":
        positions = tokens = side * side + 1
    else:
        tokens = (side // 2) ** 2
    return ModelSize(
        name=name,
        language=layers * layer + hidden + vocab * hidden * (1 if tied else 2),
        projector=width * hidden + hidden + hidden * hidden + hidden + newline,
        vision=_tower(vision, clip=kind != "llava_onevision"),
        idle=0 if tied else vocab * hidden,
        layers=layers,
        kv=2 * layers * kv_heads * head,
        attention=layers * heads * head,
        positions=positions,
        visual_tokens=tokens,
        feature_size=width,
        layer=layer,
        hidden=hidden,
    )


def _tower(vision: _Fields, *, clip: bool) -> int:
    width, inner, layers = vision("hidden_size"), vision("intermediate_size"), vision("num_hidden_layers", 1000)
    patch = vision("patch_size")
    grid = (vision("image_size") // patch) ** 2
    block = 4 * (width * width + width) + 2 * width * inner + inner + width + 4 * width
    conv = 3 * patch * patch * width
    ends = conv + width * (grid + 1) + width + 4 * width if clip else conv + width + width * grid + 2 * width
    return layers * block + ends


def _encoder(fields: _Fields, name: str) -> ModelSize:
    width, patch = fields("width"), fields("patch")
    grid = (fields("size") // patch) ** 2
    block = 10 * width * width + 12 * width
    numbers = fields("layers", 1000) * block + 3 * width * patch * patch + width + grid * width + 2 * width
    return ModelSize(name, vision=numbers, positions=grid, feature_size=width)


def _adapter(fields: _Fields, name: str) -> ModelSize:
    source, target, hidden = fields("source_dim"), fields("target_dim"), fields("hidden")
    numbers = source * hidden + hidden + hidden * target + target + source * target + target + 128 * source + 129
    return ModelSize(name, vision=numbers, feature_size=target)


class _Fields:
    """Integers of one table of a config.json, each checked as it is read."""

    def __init__(self, table: Mapping[str, Any], where: str) -> None:
        self.table, self.where = table, where

    def __call__(self, name: str, most: int = 1 << 22, default: int | None = None) -> int:
        value = self.table.get(name)
        if value is None and default is not None:
            return default
        integer(ConfigError, f"{self.where}.{name}", value, 1, most)
        assert isinstance(value, int)
        return value

    def part(self, name: str) -> _Fields:
        table = self.table.get(name)
        if not isinstance(table, Mapping):
            raise ConfigError(f"{self.where}.{name}", table, "a table")
        return _Fields(table, f"{self.where}.{name}")


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(_JSON_BYTES + 1)
        fields = json.loads(text) if len(text) <= _JSON_BYTES else None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(str(path), str(error), "a readable JSON file") from error
    if not isinstance(fields, Mapping):
        raise ConfigError(str(path), f"{len(text)} bytes", f"a JSON object of at most {_JSON_BYTES} bytes")
    return fields
