"""`Law`: what a token was, or would be, drawn from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from cascade_runtime.config import SamplingParams
from cascade_runtime.decoding.choice import process_logits


@dataclass(frozen=True)
class Law:
    """Probabilities of the next token, float64 (V,) each.

    chances: what tokens are drawn from, logits processed as the request asks (temperature, top-k, top-p). own: the
    model's own, at temperature 1 with nothing removed; rules that ask how sure a model is, or how near two models are,
    ask it, so that they mean the same at every temperature.
    """

    chances: torch.Tensor
    own: torch.Tensor


def laws(logits_NV: torch.Tensor, params: SamplingParams) -> list[Law]:
    """One law per row of logits (N, V): exactly what `choose` draws from; at temperature 0, its one choice."""
    if params.temperature > 0:
        chances = torch.softmax(process_logits(logits_NV, params), -1)
    else:
        chances = F.one_hot(logits_NV.max(-1).indices, logits_NV.shape[-1]).double()
    return [Law(*pair) for pair in zip(chances, torch.softmax(logits_NV.double(), -1), strict=True)]


def certain(token: int, vocab_size: int) -> Law:
    """The law of a drafter that computes none: all on the token it said."""
    chances = F.one_hot(torch.tensor(token), vocab_size).double()
    return Law(chances, chances)
