"""The folder of a drafting head: config.json and model.safetensors, in float16, made for one target.

    {"model_type": "cascade_medusa", "hidden_size": 256, "vocab_size": 755, "heads": 4}

A head shares the target's embedding and `lm_head`, so its folder holds neither, and it is refused where the target has
another width or vocabulary. As with every checkpoint here nothing is unpickled, and sizes are known from the header
before a byte of weights is read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cascade_runtime.config.checks import integer
from cascade_runtime.errors import ConfigError
from cascade_runtime.models.checkpoint import read_json
from cascade_runtime.models.language import LanguageModel
from cascade_runtime.models.weights_file import fill_module, save_weights

EAGLE_KINDS = ("eagle", "eagle3", "hivis", "msd", "vispec", "dream")
HEAD_KINDS = ("medusa", *EAGLE_KINDS, "exits")
_HOME = Path(__file__).parent.parent / "family" / "heads"


def bundled_head(kind: str) -> Path:
    """The folder of a bundled head, made for the family's heavy. Raises ConfigError for a kind that is none."""
    if kind not in HEAD_KINDS:
        raise ConfigError("head", kind, f"one of {', '.join(HEAD_KINDS)}")
    return _HOME / kind


def save_head(path: str | Path, kind: str, settings: dict[str, Any], module: nn.Module) -> None:
    """Write a head's folder, weights in float16."""
    directory = Path(path)
    directory.mkdir(parents=True, exist_ok=True)
    save_weights(module, directory / "model.safetensors")
    (directory / "model.safetensors").chmod(0o644)
    fields = {"model_type": f"cascade_{kind}", **settings}
    (directory / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def head_kind(path: str | Path) -> str:
    """Which of HEAD_KINDS a folder holds. Raises ConfigError where it holds none."""
    directory = Path(path)
    for name in ("config.json", "model.safetensors"):
        if not (directory / name).is_file():
            raise ConfigError("head", str(directory / name), "a folder with config.json and model.safetensors")
    named = str(read_json(directory / "config.json").get("model_type"))
    kind = named.removeprefix("cascade_")
    if named != f"cascade_{kind}" or kind not in HEAD_KINDS:
        raise ConfigError("model_type", named, f"one of {[f'cascade_{kind}' for kind in HEAD_KINDS]}")
    return kind


def read_settings(path: str | Path, kinds: tuple[str, ...]) -> dict[str, Any]:
    """The fields of a head's config.json but its type. Raises ConfigError where it is of none of these kinds."""
    if head_kind(path) not in kinds:
        raise ConfigError("model_type", f"cascade_{head_kind(path)}", f"one of {[f'cascade_{kind}' for kind in kinds]}")
    fields = read_json(Path(path) / "config.json")
    return {name: value for name, value in fields.items() if name != "model_type"}


def check_settings(settings: dict[str, Any], limits: dict[str, int]) -> None:
    """Raise ConfigError unless exactly these fields are there, each an integer from 1 to its limit."""
    if settings.keys() != limits.keys():
        raise ConfigError("config.json", sorted(settings), f"exactly the fields {sorted(limits)}")
    for name, value in settings.items():
        integer(ConfigError, name, value, 1, limits[name])


def check_target(settings: dict[str, Any], language: LanguageModel) -> None:
    """Raise ConfigError unless the head was made for a target of this width and vocabulary."""
    for name in ("hidden_size", "vocab_size"):
        if settings[name] != getattr(language, name):
            raise ConfigError(f"head's {name}", settings[name], f"{getattr(language, name)}, the target's")


def load_plain(path: str | Path, kind: str, limits: dict[str, int], make: Any, language: LanguageModel) -> Any:
    """A head that is `make(**fields of config.json)`, for this target. Raises ConfigError as the checks do."""
    settings = read_settings(path, (kind,))
    check_settings(settings, limits)
    check_target(settings, language)
    with torch.device("meta"):  # nothing is allocated for a size that only config.json claims
        module = make(**settings)
    return fill(module, path, language)


def fill(module: Any, path: str | Path, language: LanguageModel) -> Any:
    """Give a module built on the meta device its weights, on the target's device and of its type, for inference.

    Raises ConfigError listing tensors that are missing, unexpected, of another shape or not floating.
    """
    fill_module(module, Path(path) / "model.safetensors", "exactly the tensors that config.json describes")
    return module.to(device=language.device, dtype=language.dtype).eval().requires_grad_(False)
