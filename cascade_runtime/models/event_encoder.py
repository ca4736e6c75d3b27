"""The event encoder and the adapter: a small tower over event frames, and the way from its features into a target's
own.

    frames (F, 3, S, S) -> EventEncoder -> (F, P, De) -> Adapter -> (F, P, Dv)     in the target tower's raw space
                                              |
                                              +-> Adapter.predicted_cosine -> (F,)  what the gate may expect, without
                                              dense features

A directory holds model.safetensors and config.json and nothing is unpickled. `EventEncoder.space` is a tag made from
weights and configuration; an adapter names the space it reads (`source_space`) and the tower it was fitted to
(`target_space`), so that a stage can refuse a pair that was not trained together.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from cascade_runtime.config.checks import integer
from cascade_runtime.errors import ConfigError, FeatureSpaceError, InputError
from cascade_runtime.models.weights_file import save_weights

_LIMITS = {
    "size": 1024,
    "patch": 256,
    "width": 4096,
    "layers": 64,
    "heads": 64,
    "source_dim": 16384,
    "target_dim": 16384,
    "hidden": 16384,
    "base_hidden": 16384,
}
_MAX_CONFIG_BYTES = 1 << 20


class _Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, x_FPE: torch.Tensor) -> torch.Tensor:
        frames, patches, width = x_FPE.shape
        qkv = self.qkv(self.norm1(x_FPE)).view(frames, patches, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(frames, patches, width)
        x_FPE = x_FPE + self.out(mixed)
        return x_FPE + self.down(F.gelu(self.up(self.norm2(x_FPE))))


class EventEncoder(nn.Module):
    """Frames (F, 3, size, size) to event features (F, P, width), P = (size / patch) ** 2, each frame on its own."""

    def __init__(self, *, size: int = 64, patch: int = 8, width: int = 96, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.settings = {"size": size, "patch": patch, "width": width, "layers": layers, "heads": heads}
        _check(self.settings)
        if size % patch or width % heads:
            raise ConfigError("patch, heads", (patch, heads), f"divisors of size {size} and width {width}")
        self.embed = nn.Conv2d(3, width, patch, stride=patch)
        self.position = nn.Parameter(torch.randn((size // patch) ** 2, width) * 0.02)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.space = ""

    @property
    def feature_size(self) -> int:
        return self.settings["width"]

    @property
    def device(self) -> torch.device:
        return self.position.device

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Raises InputError for another frame size."""
        size = self.settings["size"]
        if frames.dim() != 4 or frames.shape[1:] != (3, size, size):
            raise InputError("frames", tuple(frames.shape), f"(frames, 3, {size}, {size})")
        x_FPE = self.embed(frames.to(self.device, self.position.dtype)).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x_FPE = block(x_FPE)
        return self.norm(x_FPE)


class Adapter(nn.Module):
    """Event features (F, P, source_dim) to the target tower's raw features (F, P, target_dim), with the gate's head."""

    kind: str = ""  # a name of `models/adapter_kinds.py`; the bundled one has none

    def __init__(
        self, *, source_dim: int, target_dim: int, hidden: int, source_space: str = "", target_space: str = ""
    ) -> None:
        super().__init__()
        self.settings = {"source_dim": source_dim, "target_dim": target_dim, "hidden": hidden}
        _check(self.settings)
        self.source_space, self.target_space = source_space, target_space
        self.up, self.down = nn.Linear(source_dim, hidden), nn.Linear(hidden, target_dim)
        self.skip = nn.Linear(source_dim, target_dim)
        self.gate_up, self.gate_down = nn.Linear(2 * source_dim, 64), nn.Linear(64, 1)

    @property
    def source_dim(self) -> int:
        return self.settings["source_dim"]

    @property
    def target_dim(self) -> int:
        return self.settings["target_dim"]

    @property
    def device(self) -> torch.device:
        return self.gate_up.weight.device

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Raises FeatureSpaceError for another width."""
        features = self._expect(features)
        return self.skip(features) + self.down(F.gelu(self.up(features)))

    def predicted_cosine(self, features: torch.Tensor) -> torch.Tensor:
        """(F,) in -1..1: the mean cosine over patches that `forward` should reach against dense features."""
        features = self._expect(features)
        summary = torch.cat([features.mean(1), features.std(1)], dim=-1)
        return torch.tanh(self.gate_down(F.gelu(self.gate_up(summary))))[:, 0]

    def _expect(self, features: torch.Tensor) -> torch.Tensor:
        if features.dim() != 3 or features.shape[2] != self.source_dim:
            raise FeatureSpaceError("features", tuple(features.shape), f"(frames, patches, {self.source_dim})")
        return features.to(self.device, self.gate_up.weight.dtype)


def alignment_loss(aligned: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
    """What an adapter is fitted by, over features (F, P, D): one minus the cosine, and half the squared error relative
    to the spread of the dense ones.
    """
    spread = dense.var((0, 1)).mean()
    near = F.cosine_similarity(aligned, dense, dim=-1).mean()
    return (1 - near) + 0.5 * (aligned - dense).square().mean() / spread


def save_event_encoder(encoder: EventEncoder, path: str | Path) -> str:
    """Write an encoder in float16; returns its space tag, as loading will give it."""
    return _save(encoder, path, {"model_type": "cascade_event_encoder", **encoder.settings})


def save_adapter(adapter: Adapter, path: str | Path) -> None:
    """Write an adapter in float16 with the two spaces it joins."""
    spaces = {"source_space": adapter.source_space, "target_space": adapter.target_space}
    kind = {"kind": adapter.kind} if adapter.kind else {}
    _save(adapter, path, {"model_type": "cascade_adapter", **kind, **adapter.settings, **spaces})


def load_event_encoder(
    path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | str = "auto"
) -> EventEncoder:
    """An encoder ready to run; dtype "auto" is float32 on CPU, else as stored. Raises ConfigError naming what is
    wrong.
    """
    fields, weights = _read(path, "cascade_event_encoder")
    names = ("size", "patch", "width", "layers", "heads")
    settings = {name: fields.get(name) for name in names}
    _check(settings)
    with torch.device("meta"):  # nothing is allocated for a size that only config.json claims
        encoder = EventEncoder(**settings)  # type: ignore[arg-type]  # _check has seen integers
    encoder = _fill(encoder, weights, path, device, dtype)
    encoder.space = _space(settings, weights)
    return encoder


def load_adapter(path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | str = "auto") -> Adapter:
    """An adapter ready to run, of the bundled kind or of `models/adapter_kinds.py`; dtype as in `load_event_encoder`.

    Raises ConfigError naming what is wrong.
    """
    from cascade_runtime.models.adapter_kinds import KindAdapter

    fields, weights = _read(path, "cascade_adapter")
    kind = fields.get("kind")
    names = ("source_dim", "target_dim", "hidden", *(() if kind is None else ("base_hidden",)))
    settings = {name: fields.get(name) for name in names}
    _check(settings)
    spaces = {name: fields.get(name) for name in ("source_space", "target_space")}
    for name, space in spaces.items():
        if not isinstance(space, str) or not 1 <= len(space) <= 128:
            raise ConfigError(name, space, "the tag of a feature space, 1 to 128 characters")
    with torch.device("meta"):
        made: Any = {**settings, **spaces}
        adapter = Adapter(**made) if kind is None else KindAdapter(kind, **made)
    return _fill(adapter, weights, path, device, dtype)


def _check(settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        integer(ConfigError, name, value, 1, _LIMITS[name])


def _space(settings: dict[str, Any], weights: dict[str, torch.Tensor]) -> str:
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=6)
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].contiguous().view(torch.uint8).numpy().tobytes())
    return f"events-{digest.hexdigest()}"


def _save(module: nn.Module, path: str | Path, fields: dict[str, Any]) -> str:
    directory = Path(path)
    directory.mkdir(parents=True, exist_ok=True)
    weights = save_weights(module, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    settings = module.settings
    return _space(settings, weights)  # type: ignore[arg-type]


def _read(path: str | Path, kind: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    directory = Path(path)
    config, weights = directory / "config.json", directory / "model.safetensors"
    for file in (config, weights):
        if not file.is_file():
            raise ConfigError("checkpoint", str(file), "a directory with config.json and model.safetensors")
    if config.stat().st_size > _MAX_CONFIG_BYTES:
        raise ConfigError("config.json", config.stat().st_size, f"at most {_MAX_CONFIG_BYTES} bytes")
    try:
        fields = json.loads(config.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError("config.json", str(error), "a JSON object") from error
    if not isinstance(fields, dict) or fields.get("model_type") != kind:
        found = fields.get("model_type") if isinstance(fields, dict) else fields
        raise ConfigError("model_type", found, repr(kind))
    try:
        return fields, load_file(weights)
    except (SafetensorError, OSError) as error:
        raise ConfigError("model.safetensors", str(error), "a whole safetensors file") from error


def _fill(
    module: Any,
    weights: dict[str, torch.Tensor],
    path: str | Path,
    device: str | torch.device,
    dtype: torch.dtype | str,
) -> Any:
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if expected != found:
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise ConfigError(f"{path}/model.safetensors", wrong[:8], "exactly the tensors that config.json describes")
    module.load_state_dict(weights, assign=True)
    if isinstance(dtype, str):
        stored = next(iter(weights.values())).dtype
        named = torch.float32 if torch.device(device).type == "cpu" else stored
        dtype = named if dtype == "auto" else getattr(torch, dtype, None)  # type: ignore[assignment]
    if not isinstance(dtype, torch.dtype):
        raise ConfigError("dtype", dtype, "auto, float32, float16 or bfloat16")
    return module.to(device=device, dtype=dtype).eval()
