"""A pool of filmed scenes on disk: activity maps and facts, in chunks that any number of processes may make or read.

    runs/pool/chunk_00007.npz    maps (n, 2, 3, 64, 64) float16, rows (n, 7) int8; the same for the same number

Chunks from HELD_OUT on are never trained on. `augment` turns each clip into one of 32: flips, quarter turns, time
reversal and inverted contrast change the maps and the facts together, exactly.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cascade_runtime.events.representations.activity import activity_of_groups
from cascade_runtime.models.family import FRAME_SIZE, FRAMES
from cascade_runtime.training.facts import turn
from cascade_runtime.training.scenes import KIND_SHARES, KINDS, SIDE, draw, expose, film, label

HELD_OUT = 10_000
CHUNK = 1024
_BATCH = 32


def make_chunk(number: int, clips: int = CHUNK) -> tuple[NDArray[np.float16], NDArray[np.int8]]:
    """(maps, facts) of chunk `number`, shuffled. Seeded by the number alone."""
    rng = np.random.default_rng([number, 77])
    maps, rows = [], []
    made = 0
    while made < clips:
        n = min(_BATCH, clips - made)
        batch = draw(rng, n, kind=str(rng.choice(KINDS, p=KIND_SHARES)))
        events = expose(batch, film(batch))
        sensor = (SIDE, SIDE)
        maps.append(
            activity_of_groups(
                events.scene,
                n,
                events.t,
                events.x,
                events.y,
                events.p,
                sensor=sensor,
                frames=FRAMES,
                size=FRAME_SIZE,
            ).astype(np.float16)
        )
        rows.append(label(batch, events))
        made += n
    order = rng.permutation(clips)
    return np.concatenate(maps)[order], np.concatenate(rows)[order]


def chunk_path(directory: str | Path, number: int) -> Path:
    return Path(directory) / f"chunk_{number:05d}.npz"


def write_chunk(directory: str | Path, number: int, clips: int = CHUNK) -> None:
    """Make a chunk unless it is there; a reader never sees half of one."""
    path = chunk_path(directory, number)
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    maps, rows = make_chunk(number, clips)
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    with open(partial, "wb") as file:
        np.savez(file, maps=maps, rows=rows)
    partial.replace(path)


def read_chunk(directory: str | Path, number: int) -> tuple[torch.Tensor, NDArray[np.int8]]:
    """(maps float16 as stored, facts) of a chunk that `write_chunk` wrote."""
    with np.load(chunk_path(directory, number), allow_pickle=False) as stored:
        return torch.from_numpy(stored["maps"]), stored["rows"]


def any_chunk(directory: str | Path, numbers: range, rng: np.random.Generator) -> tuple[torch.Tensor, NDArray[np.int8]]:
    """One of the chunks of these numbers that exist by now."""
    return read_chunk(directory, int(rng.choice([n for n in numbers if chunk_path(directory, n).exists()])))


def augment(
    maps: torch.Tensor, rows: NDArray[np.int8], rng: np.random.Generator
) -> tuple[torch.Tensor, NDArray[np.int8]]:
    """One random turn of a whole batch: maps (n, F, 3, S, S) and facts (n, 7), in a new order of symmetry each call."""
    flip, reverse, invert = (bool(bit) for bit in rng.integers(0, 2, 3))
    quarter = int(rng.integers(0, 4))
    return turn_maps(maps, flip=flip, quarter=quarter, reverse=reverse, invert=invert), turn(
        rows, flip=flip, quarter=quarter, reverse=reverse, invert=invert
    )


def turn_maps(maps: torch.Tensor, *, flip: bool, quarter: int, reverse: bool, invert: bool) -> torch.Tensor:
    """What `facts.turn` says of the facts, done to the maps."""
    if flip:
        maps = maps.flip(-1)
    if quarter:
        maps = torch.rot90(maps, -quarter, (-2, -1))
    if reverse:
        maps = maps.flip(1)
    if reverse != invert:
        maps = maps[:, :, [1, 0, 2]]
    if reverse:
        maps = maps * torch.tensor([1.0, 1.0, -1.0], dtype=maps.dtype)[:, None, None]
    return maps
