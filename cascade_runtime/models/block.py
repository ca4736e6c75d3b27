"""`Block`: one decoder block of the Llama kind (Llama, Qwen2, the text side of Qwen2-VL), in as few operations as it
takes.

    x (N, D): the tokens of all rows of a pass, one after the other, no padding
      norm -> query, key and value in one product -> rotate queries and keys in place -> SlotCache.attend -> + x
      norm -> gate and up in one product -> silu(gate) * up                           -> down           -> + x

The arithmetic is that of the library's layer, whose weights these are; `named_weights` gives them back under the
library's names. Queries and keys are stored with the two halves of each head interleaved, so that a rotary embedding
(Su et al. 2021, eq. 34) is one complex product; scores do not depend on the order within a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional as F

from cascade_runtime.errors import ConfigError
from cascade_runtime.models.linear import Linear
from cascade_runtime.models.norm import RmsNorm
from cascade_runtime.models.slot_cache import SlotCache

_PARTS = {
    *("input_layernorm", "post_attention_layernorm"),
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
}


class Block:
    """Block `index` of a decoder. Shapes: N tokens, D hidden size, H heads, K heads for keys and values, d head size.

    Raises `ConfigError` for a layer that has parts this arithmetic does not know.
    """

    def __init__(self, layer: Any, index: int, *, heads: int, kv_heads: int, head_dim: int) -> None:
        _check(layer, index)
        self.index, self.heads, self.kv_heads, self.head_dim = index, heads, kv_heads, head_dim
        attention, mlp = layer.self_attn, layer.mlp
        self._rotated = (heads + kv_heads) * head_dim
        turned = [_interleave(attention.q_proj, head_dim), _interleave(attention.k_proj, head_dim)]
        plain = (attention.v_proj.weight, attention.v_proj.bias)
        self.query_key_value = _joined([*turned, plain])
        self.out = Linear(attention.o_proj.weight.detach(), _detached(attention.o_proj.bias))
        pair = [(part.weight, part.bias) for part in (mlp.gate_proj, mlp.up_proj)]
        self.gate_up = _joined(pair)
        self.down = Linear(mlp.down_proj.weight.detach(), _detached(mlp.down_proj.bias))
        self.norms = (RmsNorm(layer.input_layernorm), RmsNorm(layer.post_attention_layernorm))

    def __call__(self, x_ND: torch.Tensor, turns: torch.Tensor, cache: SlotCache) -> torch.Tensor:
        """The block's output for the pass that `cache.place` has described; keys and values are written to their slots.

        turns: (N, 1, d / 2) complex, cos + i sin of every token's position.
        """
        before, after = self.norms
        mixed = self.query_key_value(before(x_ND))
        self._rotate(mixed, turns)
        x_ND = self.out.added(cache.attend(self.index, mixed), x_ND)
        gate, up = self.gate_up(after(x_ND)).chunk(2, -1)
        return self.down.added(F.silu(gate) * up, x_ND)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.norms[0].weight.device

    def _rotate(self, mixed: torch.Tensor, turns: torch.Tensor) -> None:
        pairs = mixed[:, : self._rotated].unflatten(-1, (-1, self.head_dim // 2, 2))
        if mixed.dtype in (torch.float32, torch.float64):
            torch.view_as_complex(pairs).mul_(turns)
        else:
            pairs.copy_(torch.view_as_real(torch.view_as_complex(pairs.float()) * turns))

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name within the library's layer, tensor), all of them."""
        for name, norm in zip(("input_layernorm", "post_attention_layernorm"), self.norms, strict=True):
            yield f"{name}.weight", norm.weight
        sizes = [self.heads * self.head_dim, *[self.kv_heads * self.head_dim] * 2]
        for name, weight, bias in _parted(self.query_key_value, ("q_proj", "k_proj", "v_proj"), sizes):
            turned = name != "v_proj"
            yield f"self_attn.{name}.weight", _deinterleave(weight, self.head_dim) if turned else weight
            if bias is not None:
                yield f"self_attn.{name}.bias", _deinterleave(bias, self.head_dim) if turned else bias
        half = self.gate_up.weight.shape[0] // 2
        for group, linear, names, parts in (
            ("self_attn", self.out, ("o_proj",), [self.out.weight.shape[0]]),
            ("mlp", self.gate_up, ("gate_proj", "up_proj"), [half, half]),
            ("mlp", self.down, ("down_proj",), [self.down.weight.shape[0]]),
        ):
            for name, weight, bias in _parted(linear, names, parts):
                yield f"{group}.{name}.weight", weight
                if bias is not None:
                    yield f"{group}.{name}.bias", bias

    @property
    def nbytes(self) -> int:
        """Bytes of the weights held."""
        parts = (self.query_key_value, self.out, self.gate_up, self.down, *self.norms)
        return sum(each.nbytes for each in parts)


def _check(layer: Any, index: int) -> None:
    found = {name for name, part in layer.named_modules() if next(part.parameters(recurse=False), None) is not None}
    if found != _PARTS:
        raise ConfigError(f"layers.{index}, more or less", sorted(found ^ _PARTS), "a Llama or Qwen2 layer's parts")
    if type(layer.mlp.act_fn).__name__ not in ("SiLU", "SiLUActivation"):
        raise ConfigError("hidden_act", type(layer.mlp.act_fn).__name__, "silu")


def _detached(bias: torch.Tensor | None) -> torch.Tensor | None:
    return None if bias is None else bias.detach()


def _joined(parts: list[tuple[torch.Tensor, torch.Tensor | None]]) -> Linear:
    """One product of several that take the same input."""
    weight = torch.cat([weight.detach() for weight, _ in parts])
    biases = [bias.detach() for _, bias in parts if bias is not None]
    if len(biases) not in (0, len(parts)):
        raise ConfigError(
            "bias", f"in {len(biases)} of {len(parts)} projections", "in all that share an input, or none"
        )
    return Linear(weight, torch.cat(biases) if biases else None)


def _parted(
    linear: Linear, names: tuple[str, ...], sizes: list[int]
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor | None]]:
    biases = [None] * len(sizes) if linear.bias is None else linear.bias.split(sizes)
    yield from zip(names, linear.weight.split(sizes), biases, strict=True)


def _interleave(projection: Any, head_dim: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Rows of each head in the order 0, d/2, 1, d/2 + 1, ...: what is rotated together lies together."""

    def order(tensor: torch.Tensor | None) -> torch.Tensor | None:
        if tensor is None:
            return None
        return tensor.detach().unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2).contiguous()

    weight = order(projection.weight)
    assert weight is not None
    return weight, order(projection.bias)


def _deinterleave(tensor: torch.Tensor, head_dim: int) -> torch.Tensor:
    return tensor.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)
