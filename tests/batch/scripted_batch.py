"""A cascade for tests of batches: answers depend on the question alone, failures come by script. No model runs.

Run as a program it is a batch in a process of its own, for tests that kill it:

    python scripted_batch.py FOLDER SECONDS_PER_ANSWER
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cascade_runtime.api import Answer, GenerateRequest, Timings
from cascade_runtime.batch import BatchConfig, Report, begin, run_batch
from cascade_runtime.config import Recipe, load_recipe
from cascade_runtime.errors import CascadeError
from cascade_runtime.events import Events, write_events
from cascade_runtime.metrics import EdgeCounters
from cascade_runtime.transports import Update

RECIPE = Path(__file__).parents[2] / "benchmarks" / "recipes" / "emulated_5_25_100.toml"


def recipe(*overrides: str) -> Recipe:
    """A recipe without checkpoints."""
    return load_recipe(RECIPE, overrides)


def write_recording(path: Path, seed: int = 0) -> Path:
    """A small recording."""
    rng = np.random.default_rng(seed)
    t = np.sort(rng.integers(0, 40_000, 200))
    x, y = rng.integers(0, 32, 200).astype(np.uint16), rng.integers(0, 24, 200).astype(np.uint16)
    write_events(path, Events(t, x, y, rng.integers(0, 2, 200).astype(np.uint8), width=32, height=24))
    return path


def said(request: GenerateRequest) -> Answer:
    """What the cascade says: a function of the question and the recording."""
    events = request.events
    assert isinstance(events, Events)
    digest = hashlib.sha256(request.question.encode() + events.t.tobytes()).digest()
    edge = EdgeCounters("light-heavy")
    edge.observe(4, digest[0] % 5)
    return Answer(
        request_id=request.request_id,
        text=f"number {digest[1]}",
        token_ids=tuple(digest[:6]),
        pieces=("",) * 6,
        finish_reason="stop",
        levels=("light", "heavy"),
        masks=(2,) * 6,
        timings=Timings(1.0, 2.0),
        edges=(edge,),
        target_passes=digest[2] % 6,
    )


class Scripted:
    """A transport. `answer` says what a request gives; requests that were asked, in order, are in `asked`."""

    def __init__(self, answer: Callable[[GenerateRequest], Answer | CascadeError] = said, wait_s: float = 0.0) -> None:
        self.answer, self.wait_s = answer, wait_s
        self.asked: list[GenerateRequest] = []

    async def run(
        self, requests: Sequence[GenerateRequest], timeout_s: float | None, stream: bool
    ) -> AsyncIterator[Update]:
        order = sorted(range(len(requests)), key=lambda i: said(requests[i]).token_ids)  # as they come
        self.asked += requests
        for index in order:
            if self.wait_s:
                await asyncio.sleep(self.wait_s)
            yield index, self.answer(requests[index])

    async def close(self) -> None:
        """Nothing to stop."""


def batch(folder: Path, transport: Scripted | None = None, *, overrides: Sequence[str] = (), **settings: Any) -> Report:
    """One run of folder/q.jsonl -> folder/a.jsonl, or of other files."""
    paths = {"input": folder / "q.jsonl", "output": folder / "a.jsonl"}
    config = BatchConfig(**{**paths, "hidden": True, "concurrency": 4, "shard_rows": 4, **settings})
    made = recipe(*overrides)
    told = begin(config, made, {})
    return told if told is not None else asyncio.run(run_batch(config, transport or Scripted()))


def main(folder: Path, wait_s: float) -> None:
    """Run, and keep in folder/asked a byte for each answer that was given."""

    def answer(request: GenerateRequest) -> Answer:
        with (folder / "asked").open("ab") as file:
            file.write(b".")
        return said(request)

    batch(folder, Scripted(answer, wait_s), window_rows=24)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
