"""A checkpoint directory as tensors of parts: safetensors only, read part by part, refused when anything is off.

Directories come from anywhere, so nothing is unpickled, no code of theirs runs, nothing is fetched, and sizes are
known from the headers before a byte of weights is read. A tensor too many, too few, or of another shape is refused by
name: a model that runs on half of its weights would still answer, only wrongly.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from cascade_runtime.errors import ConfigError
from cascade_runtime.models.architectures import split_name

MAX_JSON_BYTES = 64 << 20
HASHED_BYTES_PER_TENSOR = 1 << 16
DeviceOf = Callable[[str], torch.device]  # of a tensor, by its name within its part
_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16}
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of at most 64 MiB. Raises ConfigError."""
    check_size(path)
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(str(path), str(error), "a readable JSON file") from error
    if not isinstance(fields, dict):
        raise ConfigError(str(path), type(fields).__name__, "a JSON object")
    return fields


def check_size(path: Path) -> None:
    """Raise ConfigError where a file that is read whole is larger than 64 MiB; one that is absent passes."""
    if path.is_file() and path.stat().st_size > MAX_JSON_BYTES:
        raise ConfigError(str(path), path.stat().st_size, f"at most {MAX_JSON_BYTES} bytes")


class Checkpoint:
    """The tensors of one directory, sorted into parts: `names[part][local name] = (file, stored name)`."""

    def __init__(self, directory: Path, family: str) -> None:
        self.directory = directory
        self.names: dict[str, dict[str, tuple[Path, str]]] = {"language": {}, "vision": {}, "projector": {}}
        unknown = []
        for stored, file in sorted(_stored_names(directory).items()):
            place = split_name(family, stored)
            if place is None:
                unknown.append(stored)
            elif place[0] != "unused":
                if place[1] in self.names[place[0]]:
                    raise ConfigError(str(file), stored, f"{place[0]} tensor {place[1]!r} once")
                self.names[place[0]][place[1]] = (file, stored)
        if unknown:
            raise ConfigError(str(directory), _some(unknown), f"only tensors of a {family} model")

    def fill(self, module: nn.Module, part: str, *, device: DeviceOf, dtype: torch.dtype | None) -> int:
        """Give a module built on the meta device its weights, each on the `device` of its name; return their bytes.
        dtype None keeps the stored one.

        Raises ConfigError listing tensors that are missing, unexpected, of another shape or not floating.
        """
        wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        stored = self.names[part]
        tied = bool(getattr(module, "tied", False))
        missing = [name for name in wanted if name not in stored and not (tied and name == "lm_head.weight")]
        unexpected = [name for name in stored if name not in wanted]
        if missing or unexpected:
            found = f"missing {_some(missing)}, unexpected {_some(unexpected)}"
            raise ConfigError(f"{self.directory} [{part}]", found, "exactly the tensors that config.json describes")
        tensors: dict[str, torch.Tensor] = {}
        for file in sorted({file for file, _ in stored.values()}):
            with _open(file) as opened:
                here = {name: at[1] for name, at in stored.items() if at[0] == file}
                self._check_shapes(opened, here, wanted, part)
                for name, stored_name in here.items():
                    tensors[name] = self._read(opened, stored_name, device(name), dtype)
        if tied and "lm_head.weight" not in tensors:
            tensors["lm_head.weight"] = tensors["decoder.embed_tokens.weight"]
        module.load_state_dict(tensors, strict=True, assign=True)
        module.requires_grad_(False)
        if tied:
            module.lm_head.weight = module.decoder.embed_tokens.weight  # type: ignore[union-attr]
        unique = {tensor.data_ptr(): tensor for tensor in module.state_dict().values()}
        return sum(tensor.numel() * tensor.element_size() for tensor in unique.values())

    def part_bytes(self, part: str, dtype: torch.dtype | None, device: DeviceOf) -> dict[torch.device, int]:
        """Device -> bytes of a part's stored tensors there as another type (None: as stored), by the headers alone."""
        totals: dict[torch.device, int] = {}
        for file in {file for file, _ in self.names[part].values()}:
            with _open(file) as opened:
                for name, (at, stored) in self.names[part].items():
                    if at == file:
                        view = opened.get_slice(stored)
                        size = dtype.itemsize if dtype else _BITS.get(view.get_dtype(), 32) // 8
                        totals[device(name)] = totals.get(device(name), 0) + math.prod(view.get_shape()) * size
        return totals

    def identity(self, part: str, kind: str, facts: object) -> str:
        """ "<kind>-<12 hex>" over a part's tensor names, shapes, stored types, first 64 KiB each, and `facts`.

        It tells fine-tuned towers apart at a reading cost of a few megabytes; it is an identity, not an authentication.
        """
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
        for name, (file, stored) in sorted(self.names[part].items()):
            with _open(file) as opened:
                view = opened.get_slice(stored)
                shape = view.get_shape()
                head = view[: _rows_to_hash(shape)] if shape else opened.get_tensor(stored)
            digest.update(f"{name}{shape}{view.get_dtype()}".encode())
            digest.update(head.contiguous().view(torch.uint8).numpy().tobytes() if shape else str(head.item()).encode())
        return f"{kind}-{digest.hexdigest()[:12]}"

    def _check_shapes(self, opened: Any, here: dict[str, str], wanted: dict[str, tuple[int, ...]], part: str) -> None:
        wrong = []
        for name, stored_name in here.items():
            shape = tuple(opened.get_slice(stored_name).get_shape())
            if shape != wanted[name]:
                wrong.append(f"{stored_name} {shape} for {wanted[name]}")
        if wrong:
            raise ConfigError(f"{self.directory} [{part}]", _some(wrong), "the shapes that config.json describes")

    def _read(self, opened: Any, name: str, device: torch.device, dtype: torch.dtype | None) -> torch.Tensor:
        tensor = opened.get_tensor(name)
        if tensor.dtype not in _FLOATS:
            raise ConfigError(f"{self.directory} [{name}]", tensor.dtype, f"one of {[str(d) for d in _FLOATS]}")
        return tensor.to(device=device, dtype=dtype or tensor.dtype)


def _stored_names(directory: Path) -> dict[str, Path]:
    """Stored tensor name -> file, from the index where there is one."""
    index = directory / "model.safetensors.index.json"
    if not index.is_file():
        single = directory / "model.safetensors"
        if not single.is_file():
            found = sorted(p.name for p in directory.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".safetensors"))
            raise ConfigError(
                str(directory), _some(found), "model.safetensors or model.safetensors.index.json; pickles never"
            )
        with _open(single) as opened:
            return dict.fromkeys(opened.keys(), single)
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise ConfigError(str(index), type(weight_map).__name__, "weight_map: an object of tensor name to file name")
    files = {}
    for shard in sorted(set(weight_map.values())):
        file = directory / shard
        if Path(shard).name != shard or not shard.endswith(".safetensors") or not file.is_file():
            raise ConfigError(str(index), shard, "names of .safetensors files in the same directory")
        with _open(file) as opened:
            held = set(opened.keys())
        claimed = {name for name, at in weight_map.items() if at == shard}
        if held != claimed:
            raise ConfigError(str(file), _some(sorted(held ^ claimed)), "exactly the tensors that the index names")
        files[shard] = file
    return {name: files[shard] for name, shard in weight_map.items()}


def _open(file: Path) -> Any:
    try:
        return safe_open(str(file), framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise ConfigError(str(file), str(error), "a well-formed safetensors file") from error


def _rows_to_hash(shape: list[int]) -> int:
    row_bytes = 4
    for side in shape[1:]:
        row_bytes *= max(side, 1)
    return max(1, HASHED_BYTES_PER_TENSOR // row_bytes)


def _some(names: list[str]) -> list[str]:
    return names if len(names) <= 4 else [*names[:4], f"and {len(names) - 4} more"]
