"""`RmsNorm`: x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019, eq. 4), made of the library's module.

A CPU has no kernel of its own for it, and a dozen small operations cost more than a layer norm of (x, -x), whose
mean is 0 and whose variance is mean(x^2). Elsewhere it is the library's kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F


class RmsNorm:
    """Over the last dimension of x (N, D)."""

    def __init__(self, module: Any) -> None:
        weight: torch.Tensor = module.weight.detach()
        self._size: int = len(weight)
        self.epsilon: float = module.variance_epsilon
        self._twice = weight.device.type == "cpu"
        self._weight = torch.cat([weight, weight]) if self._twice else weight

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._twice:
            both = torch.cat([x, -x], -1)
            return F.layer_norm(both, (2 * self._size,), self._weight, eps=self.epsilon)[..., : self._size]
        return F.rms_norm(x, (self._size,), self._weight, self.epsilon)

    @property
    def weight(self) -> torch.Tensor:
        """(D,), as the module has it."""
        return self._weight[: self._size]

    @property
    def nbytes(self) -> int:
        """Bytes of the weight, counted once."""
        return self._size * self._weight.element_size()
