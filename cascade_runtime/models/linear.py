"""`Linear`: one matrix product of a decoder, its weight kept in the order in which the device multiplies fastest.

On an x86 CPU in float32 that is oneDNN's own blocked order, made once: the stored order is slow for a few rows, and
very slow for some shapes (`python -m benchmarks.steps --products` shows both). A bias and the sum of a residual are
part of the same operation. Elsewhere it is the stored order and the library's product.
"""

from __future__ import annotations

import platform

import torch
from torch.nn import functional as F

_BLOCKED = torch.backends.mkldnn.is_available() and platform.machine() == "x86_64"


class Linear:
    """y = x @ weight.T + bias for x (N, in), weight (out, in). Holds a copy of its own; `weight` gives it back."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self._shape, self._bias = tuple(weight.shape), bias
        self._blocked = _BLOCKED and weight.device.type == "cpu" and weight.dtype == torch.float32
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight) if self._blocked else weight

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._blocked:
            return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return F.linear(x, self._weight, self._bias)

    def added(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """residual + y."""
        if self._blocked:
            return torch.ops.mkldnn._linear_pointwise.binary(x, residual, self._weight, self._bias, "add")
        return residual + F.linear(x, self._weight, self._bias)

    @property
    def weight(self) -> torch.Tensor:
        """(out, in), in the stored order."""
        return self._weight.to_dense() if self._blocked else self._weight

    @property
    def bias(self) -> torch.Tensor | None:
        """(out,) or None."""
        return self._bias

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        held = self._shape[0] * self._shape[1] * self._weight.element_size()
        return held + (0 if self._bias is None else self._bias.numel() * self._bias.element_size())
