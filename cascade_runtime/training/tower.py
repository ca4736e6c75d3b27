"""Step 1: the vision tower learns to see, by classifying the seven facts.

Language alone never taught a small tower to look (losses fall on templates first), so the tower is trained on the
facts themselves, each read off the raw features by one attention query and a small head. The heads are thrown away;
what stays is that every fact lies in the raw features within reach of one attention layer, which is what a language
model has. Held-out accuracy per fact says when to go on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from cascade_runtime.models.family import TOWER_WIDTH
from cascade_runtime.training.descent import Descent, Training
from cascade_runtime.training.facts import CLASSES, Facts
from cascade_runtime.training.pool import any_chunk, augment


@dataclass(frozen=True, kw_only=True)
class TowerConfig(Training):
    """How long and how fast: `clips` seen in all, one cycle of a cosine with warm-up. weights: of each fact's
    loss; plain: weight of the linear probe's loss.
    """

    clips: int = 230_000
    batch: int = 64
    learning_rate: float = 1.2e-3
    warmup: float = 0.03
    weight_decay: float = 0.02
    seed: int = 1
    weights: tuple[float, ...] = (1.0,) * len(CLASSES)
    plain: float = 0.0
    report_every: int = 8192


class FactProbe(nn.Module):
    """Raw features (n, frames, P, Dv) to one (n, classes) tensor of logits per fact, in two ways.

    `forward` looks with one attention query per fact and a small network: it asks whether the fact is there.
    `plainly` is linear in the mean over frames and patches: it asks for the fact in the form that a language model
    learns to read soonest. (Features trained by `forward` alone were hardly read: family/README.md, step 3.)
    """

    def __init__(self, width: int = TOWER_WIDTH, frames: int = 2) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query = nn.Parameter(torch.randn(len(CLASSES), width) * 0.05)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(2 * frames * width, 128), nn.GELU(), nn.Linear(128, len(names)))
            for names in CLASSES.values()
        )
        self.plain = nn.ModuleList(nn.Linear(width, len(names)) for names in CLASSES.values())

    def plainly(self, raw_nFPD: torch.Tensor) -> list[torch.Tensor]:
        mean = self.norm(raw_nFPD).mean((1, 2))
        return [head(mean) for head in self.plain]

    def forward(self, raw_nFPD: torch.Tensor) -> list[torch.Tensor]:
        x = self.norm(raw_nFPD)
        weight = torch.softmax(x @ self.query.T, dim=2)
        looked = torch.einsum("nfpd,nfpk->nkfd", x, weight)
        mean = x.mean(2)[:, None].expand_as(looked)
        both = torch.cat([looked, mean], -1).flatten(2)
        return [head(both[:, k]) for k, head in enumerate(self.heads)]


def encode(tower: nn.Module, maps: torch.Tensor) -> torch.Tensor:
    """Raw features (n, F, P, Dv) of activity maps (n, F, 3, S, S): the hidden states that vision_feature_layer = -1
    selects.
    """
    n, frames = maps.shape[:2]
    raw = tower(maps.flatten(0, 1).float(), output_hidden_states=True).hidden_states[-1]
    return raw.view(n, frames, *raw.shape[1:])


def probe_loss(logits: list[torch.Tensor], rows: NDArray[np.int8], weights: tuple[float, ...]) -> torch.Tensor:
    """Weighted mean over facts of the cross entropy over clips where the fact applies and is decided."""
    target = torch.from_numpy(rows.astype(np.int64)).clamp(min=-1)
    known = [k for k in range(len(logits)) if (target[:, k] >= 0).any()]
    losses = [weights[k] * F.cross_entropy(logits[k], target[:, k], ignore_index=-1) for k in known]
    return torch.stack(losses).sum() / sum(weights[k] for k in known)


@torch.inference_mode()
def probe_accuracy(
    tower: nn.Module, probe: Callable[..., list[torch.Tensor]], maps: torch.Tensor, rows: NDArray[np.int8]
) -> dict[str, float]:
    """Share right per fact, over clips where it applies and is decided. probe: a `FactProbe` or its `plainly`."""
    guesses = [torch.stack([z.argmax(-1) for z in probe(encode(tower, part))], 1) for part in maps.split(64)]
    found = torch.cat(guesses).numpy()
    return {
        name: round(float((found[:, k] == rows[:, k])[rows[:, k] >= 0].mean()), 4)
        for k, name in enumerate(Facts.names())
    }


def train_tower(
    tower: nn.Module,
    pool: Path,
    chunks: range,
    held_out: tuple[torch.Tensor, NDArray[np.int8]],
    config: TowerConfig,
    *,
    probe: FactProbe,
    progress: Callable[[str], None] = print,
) -> dict[str, float]:
    """Train `tower` and `probe` in place over the chunks that exist, round and round; returns held-out accuracy per
    fact.
    """
    torch.manual_seed(config.seed)
    rng = np.random.default_rng([config.seed, 5])
    descent = Descent([*tower.parameters(), *probe.parameters()], config)
    start, seen, since, losses = time.perf_counter(), 0, 0, []
    tower.train()
    while seen < config.clips:
        maps, rows = any_chunk(pool, chunks, rng)
        order = rng.permutation(len(maps))
        for at in range(0, len(order) - config.batch + 1, config.batch):
            pick = order[at : at + config.batch]
            turned, facts = augment(maps[torch.from_numpy(pick)], rows[pick], rng)
            descent.begin(seen / config.clips)
            raw = encode(tower, turned)
            loss = probe_loss(probe(raw), facts, config.weights)
            if config.plain:
                loss = loss + config.plain * probe_loss(probe.plainly(raw), facts, config.weights)
            loss.backward()
            descent.step()
            losses.append(float(loss.detach()))
            seen += len(pick)
            since += len(pick)
        if since >= config.report_every or seen >= config.clips:
            since = 0
            accuracy = probe_accuracy(tower, probe, *held_out)
            speed = seen / (time.perf_counter() - start)
            if config.plain:
                accuracy |= {f"{k} plain": v for k, v in probe_accuracy(tower, probe.plainly, *held_out).items()}
            progress(f"tower {seen} clips, {speed:.0f}/s, loss {np.mean(losses[-100:]):.3f}, {json.dumps(accuracy)}")
    tower.eval()
    return probe_accuracy(tower, probe, *held_out)
