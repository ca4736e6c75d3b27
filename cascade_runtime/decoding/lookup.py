"""A drafter without weights: it proposes what followed the same words before (`drafter = "lookup"`).

Prompt lookup (Saxena 2023; Yang et al. 2023, "Inference with Reference") finds a repeated n-gram in the prompt. The
prompt of a question about a recording is mostly pictures, so what is looked up here is what was *answered*: so far
in this answer, earlier about the same recording, and earlier at all. The longest n-gram wins, of equal ones the nearest
source. What the target confirmed is remembered when a request ends.

It is a `Level` with a `Decoder`, as every drafter: rows, slots and roll-back are those of a real one. Where it knows
nothing it says so (`Row.confidence` 0), and drafts no further until its verifier has spoken.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from cascade_runtime.config import CascadeConfig, StageConfig
from cascade_runtime.decoding.acceptance.law import certain
from cascade_runtime.decoding.decoder import Decoder
from cascade_runtime.decoding.level import Level
from cascade_runtime.decoding.row import PromptEmbeds, Row
from cascade_runtime.decoding.weightless import WeightlessLanguage
from cascade_runtime.models.stage_source import load_front
from cascade_runtime.scheduling.cost import StepCost
from cascade_runtime.vision.features import VisualFeatures

LONGEST = 8  # tokens of an n-gram
_SHORTEST = 2
_MOST = 400_000  # n-grams remembered; the least recently seen is forgotten first

NGram = tuple[int, ...]


class Memory:
    """n-gram -> what followed it last, by the recording that was asked about and over all recordings."""

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._next: OrderedDict[tuple[str, NGram], int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._next)

    def add(self, recording: str, tokens: Sequence[int]) -> None:
        """Remember a finished answer; its first token says what was asked, see `begin`."""
        for end in range(1, len(tokens)):
            for size in range(_SHORTEST if end > 1 else 1, min(LONGEST, end) + 1):
                ngram = tuple(tokens[end - size : end])
                for source in {recording, ""}:
                    self._next[source, ngram] = tokens[end]
                    self._next.move_to_end((source, ngram))
        while len(self._next) > self._most:
            self._next.popitem(last=False)

    def follow(self, recording: str, tokens: Sequence[int]) -> int | None:
        """What follows `tokens`, or None where no n-gram at their end was seen."""
        for size in range(min(LONGEST, len(tokens)), 0, -1):
            ngram = tuple(tokens[-size:])
            if size < _SHORTEST and len(tokens) > 1:
                break
            for found in (_repeated(tokens, ngram), self._next.get((recording, ngram)), self._next.get(("", ngram))):
                if found is not None:
                    return found
        return None


def _repeated(tokens: Sequence[int], ngram: NGram) -> int | None:
    """What followed the n-gram where it last stood in these tokens before their end."""
    size = len(ngram)
    for start in range(len(tokens) - size - 1, -1, -1):
        if tokens[start] == ngram[0] and tuple(tokens[start : start + size]) == ngram:
            return tokens[start + size]
    return None


def begin(question: str) -> int:
    """A number below 0 that stands for the question, before an answer's first token."""
    return -1 - int.from_bytes(hashlib.blake2b(question.strip().encode(), digest_size=6).digest(), "big")


@dataclass(frozen=True)
class LookupPrompt(PromptEmbeds):
    """A prompt of one position and no numbers. recording, begin: what is asked about, and what."""

    recording: str = ""
    begin: int = -1


class LookupDecoder(Decoder):
    """The rows of a real decoder; a pass is a search."""

    def __init__(self, language: Any, cascade: CascadeConfig) -> None:
        super().__init__(language, slots=cascade.slots, max_len=cascade.max_len)
        self.memory = Memory()

    def _run(self, plans: Sequence[Any], groups: Sequence[int]) -> list[list[int]]:
        self.passes += 1
        self.tokens_fed += sum(plan.count for plan in plans)
        return [self._settled(plan, self._choices(plan.row, plan.wanted, plan.choices)) for plan in plans]

    def _choices(self, row: Row, wanted: list[int], count: int) -> list[int]:
        prompt, out = row.prompt, list[int]()
        assert isinstance(prompt, LookupPrompt)
        for end in range(len(wanted) - count + 1, len(wanted) + 1):
            found = self.memory.follow(prompt.recording, [prompt.begin, *wanted[:end]])
            known = found is not None and 0 <= found < self.language.vocab_size
            row.confidence = 1.0 if known else 0.0
            out.append(cast(int, found) if known else 0)
        if self.tells_laws:
            first = len(wanted) - count + 1
            row.laws = {first + i: certain(token, self.language.vocab_size) for i, token in enumerate(out)}
        return out


class LookupLevel(Level):
    """The lightest level of a cascade, of the tokenizer in its checkpoint and nothing else of it."""

    @classmethod
    def load(cls, stage: StageConfig, cascade: CascadeConfig) -> LookupLevel:
        """Load the tokenizer. Raises `ConfigError` naming what is wrong with the checkpoint."""
        model = load_front(stage)
        words: Any = WeightlessLanguage(len(model.tokenizer), model.ends)
        return cls(stage.name, replace(model, language=words), LookupDecoder(words, cascade))

    def prompt(self, question: str, features: VisualFeatures) -> PromptEmbeds:
        """One position: what is seen matters only as the name of the recording."""
        return LookupPrompt(
            torch.empty(1, 0), torch.zeros(1, dtype=torch.long), 1, recording=features.source, begin=begin(question)
        )

    def learn(self, row: Row, answer: Sequence[int]) -> None:
        """Remember an answer that the target confirmed."""
        prompt = row.prompt
        assert isinstance(prompt, LookupPrompt) and isinstance(self.decoder, LookupDecoder)
        self.decoder.memory.add(prompt.recording, [prompt.begin, *answer])

    def step_cost(self) -> StepCost:
        """A search takes some 20 us."""
        return StepCost(base=2e-5, per_row=2e-5)
