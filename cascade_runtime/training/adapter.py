"""Step 4: the event encoder and its adapter learn the heavy tower's raw features, and the gate's head learns how well
they do.

Loss per patch: one minus the cosine, plus the squared error relative to the spread of the tower's features. A part of
the clips is spoilt (blanked cells, foreign noise, shuffled places), so that the gate's head sees failures too: it
regresses the mean cosine of a frame, which it must tell from event features alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from cascade_runtime.models.event_encoder import Adapter, EventEncoder, alignment_loss
from cascade_runtime.training.descent import Descent, Training
from cascade_runtime.training.pool import any_chunk, augment
from cascade_runtime.training.tower import encode


@dataclass(frozen=True, kw_only=True)
class AdapterConfig(Training):
    """How long and how fast."""

    clips: int = 60_000
    batch: int = 32
    warmup: float = 0.03
    weight_decay: float = 0.01
    seed: int = 3
    spoilt: float = 0.15
    report_every: int = 4096


def spoil(maps: torch.Tensor, share: float, rng: np.random.Generator) -> torch.Tensor:
    """A copy in which about `share` of the clips are damaged in one of three ways."""
    maps = maps.clone()
    for i in np.flatnonzero(rng.random(len(maps)) < share):
        way = int(rng.integers(0, 3))
        if way == 0:
            maps[i] = maps[i] * torch.from_numpy((rng.random(maps.shape[-2:]) < rng.random()).astype(np.float32))
        elif way == 1:
            maps[i] = maps[i] + torch.from_numpy(rng.normal(0, 0.4 * rng.random(), maps[i].shape).astype(np.float32))
        else:
            maps[i] = maps[i][..., torch.from_numpy(rng.permutation(maps.shape[-1]))]
    return maps


def train_adapter(
    encoder: EventEncoder,
    adapter: Adapter,
    tower: nn.Module,
    pool: Path,
    chunks: range,
    held_out: torch.Tensor,
    config: AdapterConfig,
    *,
    progress: Callable[[str], None] = print,
) -> dict[str, float]:
    """Train encoder, adapter and gate head in place; returns what `adapter_quality` finds on held-out maps."""
    torch.manual_seed(config.seed)
    rng = np.random.default_rng([config.seed, 13])
    descent = Descent([*encoder.parameters(), *adapter.parameters()], config, vectors_decay=True)
    start, seen, since, losses = time.perf_counter(), 0, 0, []
    while seen < config.clips:
        maps, rows = any_chunk(pool, chunks, rng)
        order = rng.permutation(len(maps))
        for at in range(0, len(order) - config.batch + 1, config.batch):
            pick = order[at : at + config.batch]
            turned, _ = augment(maps[torch.from_numpy(pick)].float(), rows[pick], rng)
            seen_maps = spoil(turned, config.spoilt, rng)
            with torch.no_grad():
                dense = encode(tower, seen_maps).flatten(0, 1)
            descent.begin(seen / config.clips)
            features = encoder(seen_maps.flatten(0, 1))
            aligned = adapter(features)
            fit = alignment_loss(aligned, dense)
            cosine = F.cosine_similarity(aligned.detach(), dense, dim=-1).mean(-1)
            gate = (adapter.predicted_cosine(features.detach()) - cosine).square().mean()
            (fit + gate).backward()
            descent.step()
            losses.append(float(fit.detach()))
            seen += len(pick)
            since += len(pick)
            if since >= config.report_every or seen >= config.clips:
                since = 0
                quality = adapter_quality(encoder, adapter, tower, held_out)
                speed = seen / (time.perf_counter() - start)
                progress(f"adapter {seen} clips, {speed:.0f}/s, loss {np.mean(losses[-50:]):.3f}, {quality}")
            if seen >= config.clips:
                break
    return adapter_quality(encoder, adapter, tower, held_out)


@torch.inference_mode()
def adapter_quality(encoder: EventEncoder, adapter: Adapter, tower: nn.Module, maps: torch.Tensor) -> dict[str, float]:
    """Mean and 5th percentile of the frame cosine, the share of frames at .8 or above, and the gate head's error."""
    cosines, predicted = [], []
    for part in maps.float().split(64):
        features = encoder(part.flatten(0, 1))
        dense = encode(tower, part).flatten(0, 1)
        cosines.append(F.cosine_similarity(adapter(features), dense, dim=-1).mean(-1))
        predicted.append(adapter.predicted_cosine(features))
    cosine, guess = torch.cat(cosines).numpy(), torch.cat(predicted).numpy()
    return {
        "cosine": round(float(cosine.mean()), 4),
        "cosine_p5": round(float(np.quantile(cosine, 0.05)), 4),
        "accepted": round(float((cosine >= 0.8).mean()), 4),
        "gate_error": round(float(np.abs(cosine - guess).mean()), 4),
    }
