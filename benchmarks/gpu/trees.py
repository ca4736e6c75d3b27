"""What a pass along a tree costs beside one along a chain, by nodes: a memory-bound pass should not notice."""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import partial

import torch

from benchmarks.gpu.shapes import median_ms, rows_at
from cascade_runtime.decoding.decoder import Decoder
from cascade_runtime.decoding.row import Extension, Row
from cascade_runtime.models.language import LanguageModel

NODES = (8, 16, 32, 48, 60)


def tree_of(nodes: int, row: Row, seed: int = 0) -> Extension:
    """A random tree of so many nodes after a prefix of one token."""
    draws = random.Random(seed)
    parents = [draws.randrange(-1, i) for i in range(nodes)]
    return Extension(row, [1], [2 + i for i in range(nodes)], parents=parents)


@torch.inference_mode()
def trees(models: Mapping[str, LanguageModel], context: int, rounds: int) -> dict[str, dict[str, float]]:
    """ms of one row's pass after `context` positions, choices on the host: one token, a chain of 8, trees."""
    told: dict[str, dict[str, float]] = {}
    print(f"\ntrees, one row after {context}: ms of a pass (times one token's)")
    for name, model in models.items():
        decoder = Decoder(model, slots=1, max_len=context + 80)
        (row,) = rows_at(decoder, 1, context)
        work = {"1 token": Extension(row, [1]), "chain of 8": Extension(row, [1], range(2, 10))}
        work |= {f"tree of {nodes}": tree_of(nodes, row) for nodes in NODES}
        ms = {label: median_ms(partial(decoder.extend, [each]), rounds) for label, each in work.items()}
        told[name] = {label: round(taken, 3) for label, taken in ms.items()}
        cells = ", ".join(f"{label} {taken:.2f} ({taken / ms['1 token']:.2f}x)" for label, taken in ms.items())
        print(f"{name:<6}{cells}", flush=True)
        decoder.release(row)
    return told
