"""Lessons: clips, questions, somebody's answers to them, and what teachers think at every token of those answers.

    draw_questions   clips of the training pool with questions and the simulator's own answers (hard labels)
    Lessons          the same with answers as token ids, and per teacher its hidden states at the answers' positions
    score            let a teacher read them: its distribution is its head over these states, at a third of the bytes
    keep, find       on disk: safetensors and JSON, whole or not at all

Clips come from chunks below `HELD_OUT`; held-out scenes come from chunks beyond it, so that no lesson holds one.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from cascade_runtime.errors import InputError
from cascade_runtime.training.clips import fresh_questions
from cascade_runtime.training.distil.states import answer_states
from cascade_runtime.training.facts import AMBIGUOUS
from cascade_runtime.training.language import Packer
from cascade_runtime.training.pool import CHUNK, HELD_OUT, augment, make_chunk
from cascade_runtime.training.tower import encode

FIRST_CHUNK = 1000  # the bundled family learnt from chunks 0 to 59: heavy should be heard on scenes that are new to it
_SCORED_TOGETHER = 4

Pairs = list[list[tuple[str, list[int]]]]
"""Per clip its (question, answer as token ids without the end)."""


@dataclass(frozen=True)
class Lessons:
    """n clips. maps: (n, F, 3, S, S) float16. hidden: teacher -> (A, K, D) float16, the states after K of its blocks
    (the last one normed) at all A answer positions, clip after clip, an answer's end included. chunks: of the pool.
    """

    maps: torch.Tensor
    pairs: Pairs
    chunks: tuple[int, ...]
    hidden: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not all(0 <= chunk < HELD_OUT for chunk in self.chunks):
            raise InputError("chunks", self.chunks, f"0..{HELD_OUT - 1}: those beyond are held out")
        if len(self.maps) != len(self.pairs):
            raise InputError("pairs", len(self.pairs), f"{len(self.maps)}, one list per clip")

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def positions(self) -> list[slice]:
        """Per clip its answer positions among all."""
        counts = [sum(len(ids) + 1 for _, ids in pairs) for pairs in self.pairs]
        ends = list(itertools.accumulate(counts))
        return [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]

    def answering(self, answers: Pairs) -> Lessons:
        """The same clips with other answers, which no teacher has read yet."""
        return Lessons(self.maps, answers, self.chunks)


_chunk = lru_cache(maxsize=2)(make_chunk)  # runs of one process mostly draw the same scenes


def draw_questions(packer: Packer, clips: int, pairs: int, seed: int, *, first_chunk: int = FIRST_CHUNK) -> Lessons:
    """`clips` turned clips with `pairs` questions each, answered by the simulator (hard labels). Chunks of training
    seeds only; the same for the same arguments."""
    rng = np.random.default_rng([seed, 29])
    maps: list[torch.Tensor] = []
    answered: Pairs = []
    chunks: list[int] = []
    while len(answered) < clips:
        chunks.append(first_chunk + len(chunks))
        stored, rows = _chunk(chunks[-1], min(CHUNK, 4 * clips))
        usable = rng.permutation(np.flatnonzero((rows == AMBIGUOUS).sum(1) <= 1))[: clips - len(answered)]
        for at in range(0, len(usable), 16):
            pick = usable[at : at + 16]
            turned, facts = augment(torch.from_numpy(stored[pick]), rows[pick], rng)
            several: Pairs = [[] for _ in pick]
            for clip, _, question, answer in fresh_questions(facts, rng, pairs):
                several[clip].append((question, packer.encode(answer)))
            maps.append(turned)
            answered += several
    return Lessons(torch.cat(maps).half(), answered, tuple(chunks))


@torch.inference_mode()
def score(lessons: Lessons, name: str, teacher: Any, packer: Packer, blocks: Sequence[int]) -> Lessons:
    """The lessons with what `teacher` thinks at every answer position, seen through its own tower: its states after
    `blocks`."""
    read = []
    for at in range(0, len(lessons), _SCORED_TOGETHER):
        part = slice(at, at + _SCORED_TOGETHER)
        raw = encode(teacher.model.vision_tower, lessons.maps[part])
        states = answer_states(teacher, packer.pack_ids(lessons.pairs[part]), raw, packer)
        read.append(torch.stack([states[block] for block in blocks], 1).half())
    return replace(lessons, hidden={**lessons.hidden, name: torch.cat(read)})


def keep(lessons: Lessons, directory: Path, made_from: Mapping[str, object]) -> None:
    """Write lessons with what they were made from. The directory appears whole or not at all."""
    partial = directory.with_name(f"{directory.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    answers = [ids for pairs in lessons.pairs for _, ids in pairs]
    tensors = {f"hidden.{name}": states.contiguous() for name, states in lessons.hidden.items()}
    tensors |= {"maps": lessons.maps.contiguous(), "tokens": torch.tensor([i for ids in answers for i in ids])}
    save_file(tensors, partial / "lessons.safetensors")
    text = {
        "made_from": dict(made_from),
        "chunks": lessons.chunks,
        "questions": [[question for question, _ in pairs] for pairs in lessons.pairs],
        "lengths": [len(ids) for ids in answers],
    }
    (partial / "lessons.json").write_text(json.dumps(text), encoding="utf-8")
    shutil.rmtree(directory, ignore_errors=True)
    partial.rename(directory)


def find(directory: Path, made_from: Mapping[str, object]) -> Lessons | None:
    """The lessons of a directory, if they are there and were made from just this."""
    if not (directory / "lessons.json").is_file():
        return None
    text = json.loads((directory / "lessons.json").read_text(encoding="utf-8"))
    if text["made_from"] != json.loads(json.dumps(dict(made_from))):
        return None
    tensors = load_file(directory / "lessons.safetensors")
    answers = iter(part.tolist() for part in tensors["tokens"].split(text["lengths"]))
    pairs = [[(question, next(answers)) for question in questions] for questions in text["questions"]]
    hidden = {name.removeprefix("hidden."): t for name, t in tensors.items() if name.startswith("hidden.")}
    return Lessons(tensors["maps"], pairs, tuple(text["chunks"]), hidden)
