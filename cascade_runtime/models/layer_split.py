"""`split_layers`: which device holds which layer of a language model that is larger than one of them.

Layers stay in order, so that a pass crosses from one device to the next once: the devices work one after the other, and
what this buys is memory, not speed. Embeddings, the last norm and the head live on the first device, where passes begin
and end; it is given the fewer layers for that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cascade_runtime.errors import ConfigError

if TYPE_CHECKING:  # the planner counts `shares`, without torch
    import torch

_LAYER = re.compile(r"decoder\.layers\.(\d+)\.")


def split_layers(module: Any, devices: Sequence[torch.device]) -> Callable[[str], torch.device] | None:
    """The device of each tensor of a language part (on the meta device), by name; None where there is nothing to split.
    Raises `ConfigError` for more devices than layers.
    """
    if len(devices) < 2:
        return None
    layers = len(module.decoder.layers)
    if layers < len(devices):
        raise ConfigError("device", "+".join(map(str, devices)), f"at most {layers} devices, the layers of the model")
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in module.decoder.layers]
    whole = sum({id(p): p.numel() for p in module.parameters()}.values())
    bounds = shares(layers, len(devices), (whole - sum(sizes)) / sizes[0])
    of_layer = [device for device, count in zip(devices, bounds, strict=True) for _ in range(count)]

    def device_of(name: str) -> torch.device:
        found = _LAYER.match(name)
        return of_layer[int(found[1])] if found else devices[0]

    return device_of


def shares(layers: int, devices: int, ends: float) -> list[int]:
    """Layers of each device, at least one; `ends`: what the first holds besides, in layers."""
    first = max(1, min(layers - devices + 1, round((layers + ends) / devices - ends)))
    rest, others = layers - first, devices - 1
    return [first, *(rest // others + (1 if k < rest % others else 0) for k in range(others))]
