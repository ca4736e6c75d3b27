"""Step 5: light and mid learn heavy's own words. A drafter is worth what it agrees with its verifier, right or wrong.

Heavy answers questions about clips greedily, from its own dense features, and the answers are kept with the clips
(`said`). The students read the same clips through dense features or, half of the time, through the event encoder and
the adapter, because in a cascade drafters start from aligned features while the dense ones are still being made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cascade_runtime.models.event_encoder import Adapter, EventEncoder
from cascade_runtime.training.clips import See, fresh_questions
from cascade_runtime.training.facts import AMBIGUOUS
from cascade_runtime.training.language import Clips, Packer, answer_greedily
from cascade_runtime.training.pool import augment, read_chunk


@dataclass(frozen=True)
class Said:
    """What heavy said about n clips: maps (n, F, 3, S, S) and per clip its (question, answer) pairs."""

    maps: torch.Tensor
    pairs: list[list[tuple[str, str]]]


def let_heavy_speak(
    heavy: Any,
    packer: Packer,
    see: See,
    pool: Path,
    chunks: range,
    *,
    clips: int,
    pairs: int,
    seed: int,
    progress: Callable[[str], None] = print,
) -> Said:
    """Heavy's greedy answers to `pairs` questions about each of `clips` turned clips."""
    rng = np.random.default_rng([seed, 17])
    kept: list[torch.Tensor] = []
    told: list[list[tuple[str, str]]] = []
    while len(told) < clips:
        maps, rows = read_chunk(pool, int(rng.choice(list(chunks))))
        usable = rng.permutation(np.flatnonzero((rows == AMBIGUOUS).sum(1) <= 1))
        for at in range(0, len(usable), 16):
            pick = usable[at : at + 16]
            turned, facts = augment(maps[torch.from_numpy(pick)], rows[pick], rng)
            drawn = list(fresh_questions(facts, rng, pairs))
            raw = see(turned)
            said = answer_greedily(heavy, packer, raw[[clip for clip, *_ in drawn]], [text for _, _, text, _ in drawn])
            several: list[list[tuple[str, str]]] = [[] for _ in pick]
            for (clip, _, question, _), ids in zip(drawn, said, strict=True):
                several[clip].append((question, packer.tokenizer.decode(ids)))
            kept.append(turned)
            told += several
            if len(told) >= clips:
                break
        progress(f"heavy has answered {pairs} questions about {len(told)} clips")
    return Said(torch.cat(kept), told)


def from_answers(said: Said, see: See, see_aligned: See, *, batch: int, aligned: float, seed: int) -> Clips:
    """Endless batches of what heavy said; a batch is seen through the adapter with probability `aligned`."""
    rng = np.random.default_rng([seed, 19])
    while True:
        order = rng.permutation(len(said.pairs))
        for at in range(0, len(order) - batch + 1, batch):
            pick = order[at : at + batch]
            eyes = see_aligned if rng.random() < aligned else see
            yield eyes(said.maps[torch.from_numpy(pick)]), [said.pairs[i] for i in pick], None


def see_through(encoder: EventEncoder, adapter: Adapter) -> See:
    """Raw features by way of the event encoder and the adapter, without gradients."""

    def see(maps: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            aligned = adapter(encoder(maps.flatten(0, 1).float()))
        return aligned.view(*maps.shape[:2], *aligned.shape[1:])

    return see
