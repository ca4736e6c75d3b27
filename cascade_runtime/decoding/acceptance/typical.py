"""LOSSY. Typical acceptance (Medusa, Cai et al. 2024, section 3.3.1).

A draft x is kept where p(x) > min(epsilon, alpha exp(-H(p))), H the entropy of p in nats: the surer the verifier is,
the more it asks for. Else the token is drawn from p. Both use the laws that tokens are drawn from, so that at
temperature 0 only the verifier's own choice is typical. The law that leaves a level is thus q on the typical tokens
plus p times the mass of q on the others; drawn by a ratio test, it keeps all that Medusa keeps, and of the others some.
"""

from __future__ import annotations

import torch

from cascade_runtime.decoding.acceptance.law import Law


def is_typical(p: torch.Tensor, epsilon: float, alpha: float) -> torch.Tensor:
    """Which tokens of a law (V,) are kept, bool (V,)."""
    entropy = torch.special.entr(p).sum()
    return p > torch.clamp(alpha * torch.exp(-entropy), max=epsilon)


class LossyTypical:
    """Keeps what the verifier finds typical."""

    lossy = True
    follows = True

    def __init__(self, epsilon: float, alpha: float) -> None:
        self._epsilon, self._alpha = epsilon, alpha

    def target(self, edge: int, q: Law, p: Law) -> Law:
        """q on the typical tokens, its mass elsewhere spread as p."""
        kept = torch.where(is_typical(p.chances, self._epsilon, self._alpha), q.chances, 0.0)
        lost = (q.chances.sum() - kept.sum()).clamp(min=0.0)
        return Law(kept + lost * p.chances, p.own)
