"""`Chance`: the random numbers of a rejection, each a hash of (seed, position, purpose, level) and of nothing else.

A position may be drafted and tested again after a rollback, with the same numbers: they decided nothing that was kept,
since a level looks at a token only once all before it stand. Batches, rounds and restarts therefore do not enter.
"""

from __future__ import annotations

import torch

from cascade_runtime.decoding.choice import derived_seed, gumbel_noise, uniform_noise

_ACCEPT, _RESIDUAL = 1, 2
_LEVELS = 256


class Chance:
    """Coins and draws."""

    def keeps(self, probability: float, seed: int, position: int, level: int) -> bool:
        """Heads with this probability."""
        key = derived_seed(seed, _ACCEPT * _LEVELS + level)
        return float(uniform_noise([key], [position], 1)) < probability

    def other(self, law: torch.Tensor, seed: int, position: int, level: int) -> int:
        """A token of a law float64 (V,) instead of a refused one."""
        key = derived_seed(seed, _RESIDUAL * _LEVELS + level)
        return int((law.log() + gumbel_noise([key], [position], len(law), law.device)[0]).argmax())

    def own(self, law: torch.Tensor, choice: int) -> int:
        """A draft, or a token after a block that was kept whole: what the decoder chose is a draw from its law."""
        return choice
