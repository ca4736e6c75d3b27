"""LOSSY. Fuzzy acceptance by divergence (PyramidSD, arXiv 2510.12966; Fuzzy SD, Holsman et al. 2025).

A draft stays, whichever token it is, where KL(P_verifier || P_drafter) <= tau; elsewhere the ratio rule decides
(the paper's PSD_F; PSD_A, a plain draw from the verifier, has the same law and keeps less). So the law that leaves a
level is q or p, position by position. The next level measures its distance from this verifier's own law, as the paper
does, while its ratio test uses the law the token was really drawn from.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cascade_runtime.decoding.acceptance.law import Law


def divergence(p: torch.Tensor, q: torch.Tensor) -> float:
    """KL(p || q) in nats; infinite where q excludes what p allows."""
    here = p > 0
    return float((p[here] * (p[here].log() - q[here].log())).sum())


class LossyFuzzy:
    """tau: one threshold per edge, in nats."""

    lossy = True
    follows = True

    def __init__(self, tau: Sequence[float]) -> None:
        self._tau = tuple(tau)

    def target(self, edge: int, q: Law, p: Law) -> Law:
        """q where the models are near, else p."""
        near = divergence(p.own, q.own) <= self._tau[edge]
        return Law(q.chances if near else p.chances, p.own)
