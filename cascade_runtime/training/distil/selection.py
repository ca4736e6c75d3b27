"""Which tokens a distillation loss counts, and how much: pure functions of distributions, one per paper.

Shapes: log-probabilities (N, V), per token of a batch; masks (N,) bool.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from cascade_runtime.training.distil.divergences import fkl

ADASPEC_SHARE = 0.4


def gains_most(
    log_p: torch.Tensor, log_draft: torch.Tensor, log_reference: torch.Tensor, share: float = ADASPEC_SHARE
) -> torch.Tensor:
    """AdaSPEC (Hu et al. 2025, arXiv 2510.19779): the `share` of tokens with the largest
    KL(p || q_draft) - KL(p || q_reference).

    The reference is a model of the drafter's own size, already distilled: what it got closer to is what a drafter of
    this size can learn, and the rest would only take its capacity. At least one token is kept.
    """
    gain = fkl(log_p, log_draft) - fkl(log_p, log_reference)
    kept = torch.zeros(len(gain), dtype=torch.bool, device=gain.device)
    kept[gain.argsort(descending=True, stable=True)[: math.ceil(share * len(gain))]] = True
    return kept


def accepted(log_p: torch.Tensor, log_q: torch.Tensor, top_k: int = 1) -> torch.Tensor:
    """SpecKD (arXiv 2510.24021), greedy verification: the tokens whose proposal argmax q is among the teacher's
    `top_k`.

    With top_k = 1 these are the drafts that a greedy verifier of this runtime accepts.
    """
    proposed = log_q.argmax(-1, keepdim=True)
    return (log_p.topk(top_k, -1).indices == proposed).any(-1)


def cascade_weights(acceptances: Sequence[float]) -> list[float]:
    """Weight of each verifier's loss in a cascade, proportional to 1 - its acceptance, summing to one.

    A stage that accepts everything has nothing left to teach. Equal weights where all accept everything.
    """
    room = [1 - acceptance for acceptance in acceptances]
    total = sum(room)
    return [part / total for part in room] if total > 0 else [1 / len(room)] * len(room)


def layer_pairs(student: int, teacher: int) -> list[int]:
    """For blocks 1 .. `student` of a shallow model, the block of a deep one that each is held to: evenly spread, last
    to last (TinyBERT, Jiao et al. 2020, sec. 3.2)."""
    return [round(block * teacher / student) for block in range(1, student + 1)]
