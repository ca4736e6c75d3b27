"""A cascade of random models, executed pass by pass on one device, with *synthetic* acceptance.

Random models never agree, so whether a draft is accepted is drawn: one chance per edge and position of a block. Every
pass is a real `Decoder.extend` with a real choice; only the comparison is replaced. Times are measured, answers mean
nothing.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.gpu.shapes import rows_at
from cascade_runtime.decoding.decoder import Decoder
from cascade_runtime.decoding.row import Extension, Row


@dataclass
class Level:
    """A model's rows, and how likely it is to accept the next draft of a block, by how many drafters stand below it."""

    decoder: Decoder
    rows: list[Row]


class Chain:
    """Levels of growing size. chances: (lower, upper) -> one chance per position of a block, the last for all later."""

    def __init__(
        self, decoders: Sequence[Decoder], chances: Sequence[Sequence[float]], rows: int, context: int
    ) -> None:
        self._levels = [Level(decoder, rows_at(decoder, rows, context)) for decoder in decoders]
        self._chances, self._random = chances, random.Random(0)
        self.answers: list[list[int]] = [[] for _ in range(rows)]

    def close(self) -> None:
        """Give the rows back."""
        for level in self._levels:
            for row in level.rows:
                level.decoder.release(row)

    def tokens_per_s(self, gammas: Sequence[int], tokens: int) -> float:
        """All rows together, for so many tokens a row, after eight to warm up."""
        for want in (8, tokens):
            for answer in self.answers:
                answer.clear()
            start = time.perf_counter()
            while min(len(answer) for answer in self.answers) < want:
                added = self._propose(len(self._levels) - 1, gammas, [[] for _ in self.answers], 1 << 30)
                for answer, new in zip(self.answers, added, strict=True):
                    answer += new
        return sum(map(len, self.answers)) / (time.perf_counter() - start)

    def _propose(self, level: int, gammas: Sequence[int], beyond: list[list[int]], want: int) -> list[list[int]]:
        """One pass of a level, its drafters having run; what it adds to each row's answer and `beyond`."""
        drafts: list[list[int]] = [[] for _ in beyond]
        if level:
            goal = min(gammas[level - 1], want - 1)
            while goal > 0 and min(map(len, drafts)) < goal:
                ahead = [old + new for old, new in zip(beyond, drafts, strict=True)]
                left = goal - min(map(len, drafts))
                for draft, new in zip(drafts, self._propose(level - 1, gammas, ahead, left), strict=True):
                    draft += new
            drafts = [draft[:goal] for draft in drafts]
        mine = self._levels[level]
        prefixes = [answer + old for answer, old in zip(self.answers, beyond, strict=True)]
        chosen = mine.decoder.extend([Extension(*each) for each in zip(mine.rows, prefixes, drafts, strict=True)])
        return [self._accepted(level, draft, choices) for draft, choices in zip(drafts, chosen, strict=True)]

    def _accepted(self, level: int, drafts: list[int], choices: list[int]) -> list[int]:
        count = 0
        while count < len(drafts):
            chances = self._chances[level - 1]
            if self._random.random() >= chances[min(count, len(chances) - 1)]:
                break
            count += 1
        return [*drafts[:count], max(choices[count], 1)]
