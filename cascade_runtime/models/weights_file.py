"""The weights of a small module of this project's own as one safetensors file, in float16. Nothing is unpickled."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from cascade_runtime.errors import ConfigError


def save_weights(module: nn.Module, file: Path) -> dict[str, torch.Tensor]:
    """Write them; returns what was written."""
    weights = {name: value.detach().half().contiguous().cpu() for name, value in module.state_dict().items()}
    save_file(weights, file, metadata={"format": "pt"})
    return weights


def fill_module(module: nn.Module, file: Path, allowed: str) -> None:
    """Give a module built on the meta device its weights, looking at their shapes before a byte of them is read.

    Raises ConfigError listing tensors that are missing, unexpected or of another shape (`allowed` says which there
    should be), and for one that is not floating or not finite.
    """
    wanted = {name: list(value.shape) for name, value in module.state_dict().items()}
    try:
        with safe_open(str(file), framework="pt", device="cpu") as opened:
            found = {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
            wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
            if wrong:
                raise ConfigError(str(file), wrong[:8], allowed)
            weights = {name: opened.get_tensor(name) for name in wanted}
    except (SafetensorError, OSError) as error:
        raise ConfigError(str(file), str(error), "a whole safetensors file") from error
    for name, value in weights.items():
        if not value.is_floating_point() or not bool(value.isfinite().all()):
            raise ConfigError(f"{file} [{name}]", value.dtype, "finite floating-point numbers")
    module.load_state_dict(weights, assign=True)
