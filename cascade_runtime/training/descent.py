"""`Training` and `Descent`: how fast a model is taught, and one step of it, the same for every part of the family.

AdamW; its rate warms up linearly and falls along half a cosine; gradients longer than 1 are cut to that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class Training:
    """What every training is told. batch: examples of a step. learning_rate: at its peak; warmup: share of the training
    until then. weight_decay: AdamW's.
    """

    batch: int = 8
    learning_rate: float = 1.5e-3
    warmup: float = 0.05
    weight_decay: float = 0.05
    seed: int = 0


def learning_rate(done: float, peak: float, warmup: float) -> float:
    """Linear warm-up, then half a cosine down to 2 % of the peak; done in 0..1."""
    if done < warmup:
        return peak * max(done / warmup, 0.01)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min((done - warmup) / (1 - warmup), 1.0))))


class Descent:
    """Steps over parameters, in place. What has one dimension (biases, norms) decays only where `vectors_decay`."""

    def __init__(
        self,
        parameters: Iterable[torch.Tensor],
        training: Training,
        *,
        vectors_decay: bool = False,
        betas: tuple[float, float] = (0.9, 0.98),
    ) -> None:
        self.parameters = list(parameters)
        self._training = training
        decaying = [p for p in self.parameters if p.dim() > 1 or vectors_decay]
        spared = [p for p in self.parameters if p.dim() <= 1 and not vectors_decay]
        groups = [{"params": decaying, "weight_decay": training.weight_decay}, {"params": spared, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=training.learning_rate, betas=betas
        )

    def begin(self, done: float) -> None:
        """Before a step's loss: the rate for `done` in 0..1 of the training, and no gradients."""
        rate = learning_rate(done, self._training.learning_rate, self._training.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        """After `backward`: the step."""
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
