"""Every kind of adapter fitted to the same pairs: event features of the bundled encoder, dense features of the tower.

The encoder stays as it is. Pairs are encoded once; each kind then takes the same batches in the same order, so that
they differ in nothing but their shape (and "houlsby" and "lora" in the trained adapter that they stand on).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from cascade_runtime.models.adapter_kinds import KindAdapter
from cascade_runtime.models.event_encoder import Adapter, EventEncoder, alignment_loss
from cascade_runtime.training.descent import Descent, Training
from cascade_runtime.training.tower import encode

HIDDEN = {"linear": 1, "mlp": 256, "bottleneck": 32, "houlsby": 16, "lora": 8, "attention": 64, "causal": 64}
"""What the comparison gives each kind as `hidden`."""


@dataclass(frozen=True)
class FeaturePairs:
    """event (n, F, P, De) and dense (n, F, P, Dv) features of the same clips."""

    event: torch.Tensor
    dense: torch.Tensor

    @classmethod
    @torch.no_grad()
    def encode(cls, maps: torch.Tensor, encoder: EventEncoder, tower: Any) -> FeaturePairs:
        """Of activity maps (n, F, 3, S, S)."""
        event, dense = [], []
        for part in maps.split(64):
            found = encoder(part.flatten(0, 1).float())
            event.append(found.view(*part.shape[:2], *found.shape[1:]))
            dense.append(encode(tower, part))
        return cls(torch.cat(event), torch.cat(dense))


def fit_kind(
    kind: str,
    base: Adapter,
    pairs: FeaturePairs,
    *,
    hidden: int | None = None,
    steps: int = 300,
    rate: float = 2e-3,
    progress: Callable[[str], None] = print,
) -> KindAdapter:
    """A trained adapter of one kind, in the two spaces of `base`, the bundled one. hidden: HIDDEN's where None."""
    training = Training(batch=32, learning_rate=rate, warmup=0.03, weight_decay=0.01, seed=3)
    torch.manual_seed(training.seed)
    adapter = KindAdapter(
        kind,
        source_dim=base.source_dim,
        target_dim=base.target_dim,
        hidden=hidden or HIDDEN[kind],
        base_hidden=base.settings["hidden"],
        source_space=base.source_space,
        target_space=base.target_space,
    )
    adapter.build_on(base)
    trained = [weight for weight in adapter.parameters() if weight.requires_grad]
    descent = Descent(trained, training, vectors_decay=True)
    rng, losses = np.random.default_rng([training.seed, 43]), []
    for step in range(steps):
        pick = torch.from_numpy(rng.choice(len(pairs.event), min(training.batch, len(pairs.event)), replace=False))
        event, dense = pairs.event[pick], pairs.dense[pick].flatten(0, 1)
        descent.begin(step / steps)
        aligned = adapter(event).flatten(0, 1)
        fit = alignment_loss(aligned, dense)
        near = F.cosine_similarity(aligned.detach(), dense, dim=-1).mean(-1)
        gate = (adapter.predicted_cosine(event.flatten(0, 1)) - near).square().mean()
        (fit + gate).backward()
        descent.step()
        losses.append(float(fit.detach()))
    progress(f"adapter {kind}, {steps} steps, loss {np.mean(losses[-20:]):.4f}")
    return adapter.eval()
