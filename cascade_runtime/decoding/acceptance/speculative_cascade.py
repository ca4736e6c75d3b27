"""LOSSY. Speculative cascades (Narasimhan et al., "Faster cascades via speculative decoding", ICLR 2025).

What leaves a level has the law pi = (1 - d) q + d p, exactly; d, 0 or 1, says whether to defer to the verifier:

    chow      max q < 1 - alpha                     the drafter is not sure
    diff      max q < max p - alpha                 the verifier is surer
    opt       max q < max p - alpha TV(p, q)        ... by more than a refusal costs (eq. 9)
    token_v3  per token: q where p(v) >= (1 - alpha) max p, and p times the mass of q that is elsewhere

Deferral asks the models' own laws, pi mixes those that tokens are drawn from: at temperature 0 that chooses between
two tokens. pi is defined only where there is a q, so a block kept whole is followed by nothing, and the verifier is
not even fed its last draft. Where the drafter takes no part the level says its own p.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from cascade_runtime.decoding.acceptance.law import Law

Defer = Callable[[torch.Tensor, torch.Tensor, float], bool]


def chow(q: torch.Tensor, p: torch.Tensor, alpha: float) -> bool:
    """Whether to defer: the drafter is not sure."""
    return bool(q.max() < 1.0 - alpha)


def diff(q: torch.Tensor, p: torch.Tensor, alpha: float) -> bool:
    """Whether to defer: the verifier is surer."""
    return bool(q.max() < p.max() - alpha)


def opt(q: torch.Tensor, p: torch.Tensor, alpha: float) -> bool:
    """Whether to defer: the verifier is surer by more than alpha times the chance of a refusal."""
    return bool(q.max() < p.max() - alpha * 0.5 * (p - q).abs().sum())


class LossyCascade:
    """One of the rules that defer position by position: `chow`, `diff`, `opt`."""

    lossy = True
    follows = False

    def __init__(self, defer: Defer, alpha: float) -> None:
        self._defer, self._alpha = defer, alpha

    def target(self, edge: int, q: Law, p: Law) -> Law:
        """p where this defers, else q."""
        return p if self._defer(q.own, p.own, self._alpha) else q


class LossyCascadeToken:
    """Token-V3: defers token by token."""

    lossy = True
    follows = False

    def __init__(self, alpha: float) -> None:
        self._alpha = alpha

    def target(self, edge: int, q: Law, p: Law) -> Law:
        """q on the tokens that the verifier ranks high, its mass elsewhere spread as p."""
        high = p.own >= p.own.max() * (1.0 - self._alpha)
        return Law(_only(q.chances, high, p.chances), _only(q.own, high, p.own))


def _only(q: torch.Tensor, high: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    kept = torch.where(high, q, 0.0)
    return kept + (q.sum() - kept.sum()).clamp(min=0.0) * p
