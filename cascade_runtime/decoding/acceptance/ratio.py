"""The ratio rule: what leaves a level has the verifier's law (Chen et al. 2023, theorem 1; Leviathan et al. 2023, A.1).

    keep draft x with min(1, p(x) / q(x)); else draw from the residual norm(max(0, p - q))

A token that leaves a level, kept or corrected, then has law p given what stands before it, so p is the q of the next
level, and the rule nests to any depth. Passing on the q it was first drawn from, or drawing corrections from p itself,
is biased (tests/decoding/test_rejection.py puts numbers on it).

With leniency l > 1 inner levels keep with min(1, l p / q) (Cascade Speculative Drafting, Chen et al. 2024): what leaves
them has another law, a known one, so the last level, never lenient, still has the target's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cascade_runtime.decoding.acceptance.law import Law


@dataclass(frozen=True)
class DraftTest:
    """What happens to a draft: kept with keep[token], else replaced by a draw from `other`. Both float64 (V,)."""

    keep: torch.Tensor
    other: torch.Tensor


def ratio_test(q: torch.Tensor, p: torch.Tensor) -> DraftTest:
    """The test that turns a draw from q into a draw from p, keeping it as often as can be, float64 (V,) each.

    A token that q cannot give is refused. Where p exceeds q nowhere (they are equal but for rounding), nothing is
    refused for good, and `other` is p.
    """
    keep = torch.where(q > 0, p / q, 0.0).clamp(max=1.0)
    return DraftTest(keep, residual(p, q))


def residual(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """norm(max(0, p - q)), or p where that is nothing."""
    rest = (p - q).clamp(min=0.0)
    mass = rest.sum()
    return rest / mass if mass > 0 else p


class Ratio:
    """The target's law. leniency: of all edges but the last."""

    lossy = False
    follows = True

    def __init__(self, edges: int, leniency: float = 1.0) -> None:
        self._last, self._leniency = edges - 1, leniency

    def target(self, edge: int, q: Law, p: Law) -> Law:
        """p; on a lenient edge what its test lets through and puts in place of the rest."""
        if edge == self._last or self._leniency == 1.0:
            return p
        kept = torch.minimum(q.chances, self._leniency * p.chances)
        lost = (1.0 - kept.sum()).clamp(min=0.0)
        return Law(kept + lost * residual(p.chances, q.chances), p.own)
