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

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from cascade_runtime.errors import ConfigError
from cascade_runtime.models.checkpoint import read_json
from cascade_runtime.models.language import LanguageModel

HEAD_KINDS = ("medusa", "eagle", "eagle3")
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
    weights = {name: value.detach().half().contiguous().cpu() for name, value in module.state_dict().items()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
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
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= limits[name]:
            raise ConfigError(name, value, f"an integer from 1 to {limits[name]}")


def check_target(settings: dict[str, Any], language: LanguageModel) -> None:
    """Raise ConfigError unless the head was made for a target of this width and vocabulary."""
    for name in ("hidden_size", "vocab_size"):
        if settings[name] != getattr(language, name):
            raise ConfigError(f"head's {name}", settings[name], f"{getattr(language, name)}, the target's")


def fill(module: Any, path: str | Path, language: LanguageModel) -> Any:
    """Give a module built on the meta device its weights, on the target's device and of its type, for inference.

    Raises ConfigError listing tensors that are missing, unexpected, of another shape or not floating.
    """
    file = Path(path) / "model.safetensors"
    wanted = {name: list(value.shape) for name, value in module.state_dict().items()}
    try:
        with safe_open(str(file), framework="pt", device="cpu") as opened:
            found = {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
            wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
            if wrong:
                raise ConfigError(str(file), wrong[:8], "exactly the tensors that config.json describes")
            weights = {name: opened.get_tensor(name) for name in wanted}
    except (SafetensorError, OSError) as error:
        raise ConfigError(str(file), str(error), "a whole safetensors file") from error
    for name, value in weights.items():
        if not value.is_floating_point() or not bool(value.isfinite().all()):
            raise ConfigError(f"{file} [{name}]", value.dtype, "finite floating-point numbers")
    module.load_state_dict(weights, assign=True)
    return module.to(device=language.device, dtype=language.dtype).eval().requires_grad_(False)
