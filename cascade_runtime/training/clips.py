"""Batches for the language steps: clips from the pool, turned, encoded by the tower, with questions and answers.

`from_facts` answers from the facts; `from_answers` repeats what the heavy model itself said (distillation).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cascade_runtime.training.facts import AMBIGUOUS, Facts
from cascade_runtime.training.language import Clips
from cascade_runtime.training.pool import any_chunk, augment
from cascade_runtime.training.questions import ask
from cascade_runtime.training.tower import encode

See = Callable[[torch.Tensor], torch.Tensor]
"""Activity maps (n, F, 3, S, S) to raw features (n, F, P, Dv)."""


def see_with(tower: nn.Module) -> See:
    """The tower's own features, without gradients."""

    def see(maps: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return encode(tower, maps)

    return see


def from_facts(pool: Path, chunks: range, see: See, *, batch: int, pairs: int, seed: int) -> Clips:
    """Endless batches from the chunks that exist; each clip with `pairs` different wordings, one question of each."""
    rng = np.random.default_rng([seed, 11])
    while True:
        maps, rows = any_chunk(pool, chunks, rng)
        usable = np.flatnonzero((rows == AMBIGUOUS).sum(1) <= 1)
        order = rng.permutation(usable)
        for at in range(0, len(order) - batch + 1, batch):
            pick = order[at : at + batch]
            turned, facts = augment(maps[torch.from_numpy(pick)], rows[pick], rng)
            yield see(turned), [_draw_pairs(Facts.from_row(row), pairs, rng) for row in facts], facts


def only_seen(
    pool: Path, chunks: range, see: See, *, batch: int, seed: int
) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
    """Endless batches of raw features and facts, ambiguous ones included, for `language.teach_reading`."""
    rng = np.random.default_rng([seed, 23])
    while True:
        maps, rows = any_chunk(pool, chunks, rng)
        order = rng.permutation(len(rows))
        for at in range(0, len(order) - batch + 1, batch):
            pick = order[at : at + batch]
            turned, facts = augment(maps[torch.from_numpy(pick)], rows[pick], rng)
            yield see(turned), facts


def _draw_pairs(facts: Facts, pairs: int, rng: np.random.Generator) -> list[tuple[str, str]]:
    """`pairs` question-answer pairs about one clip; descriptions come up one and a half times as often."""
    known = list(ask(facts))
    weight = np.array([1.5 if wording.kind == "describe" else 1.0 for wording, _ in known])
    chosen = rng.choice(len(known), min(pairs, len(known)), replace=False, p=weight / weight.sum())
    return [(str(rng.choice(known[i][0].questions)), known[i][1]) for i in chosen]


def fresh_questions(rows: np.ndarray, rng: np.random.Generator, each: int) -> Iterator[tuple[int, str, str, str]]:
    """(clip, kind, question, true answer): `each` random questions per clip."""
    for clip, row in enumerate(rows):
        known = list(ask(Facts.from_row(row)))
        for i in rng.choice(len(known), min(each, len(known)), replace=False):
            wording, answer = known[i]
            yield clip, wording.kind, str(rng.choice(wording.questions)), answer
