"""What a target said about simulated scenes, with its own states: what drafting heads are taught, and tested, with.

The scenes come from chunks of their own, FIRST_CHUNK on: neither those that the family was trained on nor those that
are held out (`pool.HELD_OUT` on). The target decodes greedily, as a cascade's does, over its whole prompt, pictures
included; of each answer the text from the end of the visual prefix on is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from cascade_runtime.config import SamplingParams
from cascade_runtime.decoding.decoder import Decoder
from cascade_runtime.decoding.row import Extension, PromptEmbeds, Row
from cascade_runtime.models.pixels import Pixels
from cascade_runtime.training.clips import fresh_questions
from cascade_runtime.training.facts import AMBIGUOUS
from cascade_runtime.training.pool import make_chunk

FIRST_CHUNK = 5_000
CHUNK = 256
GREEDY = SamplingParams(max_tokens=72)
MAX_LEN = 192


@dataclass(frozen=True)
class Said:
    """One answer. ids (n + 1,): the text of prompt and answer, its end included. asked: how many of them are of the
    prompt. states (n, blocks * D) float16: what the target computed at each of them but the last. seen (P, D) float16:
    embeddings of the prompt's visual prefix, which comes before.
    """

    ids: torch.Tensor
    asked: int
    states: torch.Tensor
    seen: torch.Tensor


@dataclass(frozen=True)
class Asked:
    """A question about a scene, as its target is given it. ids: of the text after the visual prefix."""

    prompt: PromptEmbeds
    ids: list[int]


def training_scenes(scenes: int, *, questions_each: int, seed: int) -> Iterator[tuple[torch.Tensor, list[str]]]:
    """(activity maps (F, 3, S, S), questions about them) of scenes that the family never saw."""
    rng, number, made = np.random.default_rng([seed, 29]), FIRST_CHUNK, 0
    while made < scenes:
        maps, rows = make_chunk(number, CHUNK)
        usable = np.flatnonzero((rows == AMBIGUOUS).sum(1) <= 1)[: scenes - made]
        texts: list[list[str]] = [[] for _ in usable]
        for scene, _, question, _ in fresh_questions(rows[usable], rng, questions_each):
            texts[scene].append(question)
        yield from zip(torch.from_numpy(maps[usable]).float(), texts, strict=True)
        made, number = made + len(usable), number + 1


def ask(model: Any, scenes: Iterable[tuple[torch.Tensor, Sequence[str]]]) -> Iterator[Asked]:
    """Every question about every scene, seen through the model's own tower. model: loaded with all its parts."""
    for number, (maps, questions) in enumerate(scenes):
        visual = model.projector.project(model.vision.encode(Pixels(maps, frames=len(maps))))
        for question in questions:
            built = model.prompts.build(question, num_visual=len(visual), frames=len(maps))
            end = int(built.visual_mask.nonzero()[-1]) + 1
            embeds = model.embed_prompt(built, visual)
            prompt = PromptEmbeds(embeds, built.position_ids, built.next_position, f"scene {number}", end)
            yield Asked(prompt, built.input_ids[end:].tolist())


class _Speaking:
    """A question that is being answered."""

    def __init__(self, asked: Asked, row: Row) -> None:
        self.asked, self.row, self.answer = asked, row, list[int]()
        self._states: list[torch.Tensor] = []

    def hear(self, chosen: list[int]) -> None:
        """What a pass chose, and computed."""
        states = self.row.states
        assert states is not None
        self._states.append(states.values[max(self.row.prompt.prefix_length - states.start, 0) :].half())
        self.answer += chosen

    def said(self) -> Said:
        """All of it."""
        seen = self.asked.prompt.embeds[: self.asked.prompt.prefix_length].half()
        return Said(torch.tensor(self.asked.ids + self.answer), len(self.asked.ids), torch.cat(self._states), seen)


def let_target_speak(
    model: Any,
    questions: Iterator[Asked],
    *,
    keeps: tuple[int, ...],
    slots: int = 24,
    progress: Callable[[str], None] = print,
) -> list[Said]:
    """The model's greedy answers with the states that `Decoder.keeps` names; those that do not end are left out."""
    decoder = Decoder(model.language, slots=slots, max_len=MAX_LEN)
    decoder.keeps = keeps
    live, told, reported = list[_Speaking](), list[Said](), 0
    while True:
        live += [_Speaking(one, decoder.admit(one.prompt, GREEDY)) for one in islice(questions, decoder.free_slots)]
        if not live:
            return told
        for one, chosen in zip(live, decoder.extend([Extension(one.row, one.answer) for one in live]), strict=True):
            one.hear(chosen)
        ended = [one for one in live if one.answer[-1] in model.language.eos_token_ids]
        told += [one.said() for one in ended]
        for one in [*ended, *(one for one in live if len(one.answer) == GREEDY.max_tokens)]:
            decoder.release(one.row)
        live = [one for one in live if not one.row.released]
        if len(told) >= reported + 250:
            reported = len(told)
            progress(f"the target has answered {reported} questions")


def save_said(said: Sequence[Said], path: Path) -> None:
    """Write answers to one file; a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp")
    lengths = torch.tensor([[len(one.ids), one.asked, len(one.seen)] for one in said])
    kinds = {"ids": [one.ids for one in said], "states": [one.states for one in said], "seen": [o.seen for o in said]}
    save_file({"lengths": lengths, **{kind: torch.cat(each) for kind, each in kinds.items()}}, partial)
    partial.replace(path)


def read_said(path: Path) -> list[Said]:
    """What `save_said` wrote."""
    stored = load_file(path)
    lengths = stored["lengths"].tolist()
    ids = stored["ids"].split([length for length, _, _ in lengths])
    states = stored["states"].split([length - 1 for length, _, _ in lengths])
    seen = stored["seen"].split([prefix for _, _, prefix in lengths])
    return [Said(i, asked, s, p) for i, s, p, (_, asked, _) in zip(ids, states, seen, lengths, strict=True)]
