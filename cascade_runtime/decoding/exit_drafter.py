"""`ExitDrafter`: a target drafts for itself with its first blocks, HiSpec's rule (arXiv 2510.01336), see `heads.py`.

    until NEEDED tokens are tentative:
        exit 0 drafts AHEAD tokens, one after the other     the first blocks alone
        exit 1 looks at them, all in one pass               the blocks from exit 0 on, over the states that it left
        what equals exit 1's own choices is kept, and one token of its own
    -> a chain, which the target looks at

All of it happens in the target's own slots: the keys and values of the first blocks are there for every token that
the target has fed, and what is drafted lies beyond them, where the target's next pass writes anew. That pass computes
the first blocks of the drafts once more, which HiSpec saves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from cascade_runtime.decoding.decoder import Decoder
from cascade_runtime.decoding.head_states import Ask, held_of, log_probs
from cascade_runtime.decoding.row import Row
from cascade_runtime.decoding.trees.tree import Tree
from cascade_runtime.models.exits import ExitHeads

NEEDED, AHEAD = 4, 3  # as published; what exit 1 adds makes a turn of one block four tokens long at most


@dataclass(frozen=True)
class _Told:
    row: Row
    answer: list[int]


@dataclass(eq=False)
class _Line:
    """A row that drafts. tokens: tentative ones, with their log-probability; `most` of them are wanted."""

    row: Row
    answer: list[int]
    most: int
    tokens: list[int] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    spoilt: bool = False

    @property
    def at(self) -> int:
        """Where in the slot the token stands that is to be fed next, the last one known."""
        return len(self.row.prompt) + len(self.answer) - 1 + len(self.tokens)


class ExitDrafter:
    """Exits beside the target whose slots these are."""

    keeps: tuple[int, ...] = ()

    def __init__(self, exits: ExitHeads, decoder: Decoder) -> None:
        self._exits, self._language, self._cache = exits, decoder.language, decoder.cache
        self._told: dict[int, _Told] = {}

    def observe(self, row: Row, answer: Sequence[int]) -> None:
        """See `Drafter.observe`; no state of the pass is needed."""
        self._told[row.slot] = _Told(row, list(answer))

    def forget(self, row: Row) -> None:
        """See `Drafter.forget`."""
        if held_of(self._told, row) is not None:
            del self._told[row.slot]

    @torch.inference_mode()
    def propose(self, asks: Sequence[Ask]) -> list[Tree]:
        """See `Drafter.propose`: chains. A row whose numbers are not finite is rebuilt by the target's next pass."""
        lines = {i: line for i, ask in enumerate(asks) if (line := self._line(ask)) is not None}
        live = list(lines.values())
        while live := [line for line in live if self._goes_on(line)]:
            self._turn(live)
        chains = (lines.get(i) for i in range(len(asks)))
        return [
            Tree() if one is None else Tree.of(one.tokens, [*range(-1, len(one.tokens) - 1)], one.steps)
            for one in chains
        ]

    def _line(self, ask: Ask) -> _Line | None:
        """A row whose slot holds all of the answer but its last token, one after the other; cut to that."""
        told, row = held_of(self._told, ask.row), ask.row
        most = min(ask.budget, ask.depth)
        if told is None or not told.answer or not most or row.poisoned:
            return None
        fed = len(told.answer) - 1
        chain = row.above is None or row.above[:fed] == [*range(-1, fed - 1)]
        if row.held < len(row.prompt) + fed or row.tokens[:fed] != told.answer[:fed] or not chain:
            return None
        row.held, row.tokens, row.above = len(row.prompt) + fed, row.tokens[:fed], None  # the rest is written over
        return _Line(row, told.answer, most)

    def _goes_on(self, line: _Line) -> bool:
        ended = bool(line.tokens) and line.tokens[-1] in self._language.eos_token_ids
        enough = len(line.tokens) >= min(NEEDED, line.most)
        return not (ended or enough or line.spoilt or line.at + AHEAD >= self._cache.max_len)

    def _turn(self, lines: Sequence[_Line]) -> None:
        """Each row's next few tokens: drafted at exit 0, then judged at exit 1."""
        low, middle = self._exits.layers
        fed = [[(line.tokens or line.answer)[-1]] for line in lines]
        states: list[torch.Tensor] = []
        for ahead in range(AHEAD + 1):
            embeds = self._language.embed([tokens[-1] for tokens in fed])
            states.append(self._through(lines, embeds, range(low), ahead, 1))
            if ahead < AHEAD:
                guessed = self._choices(0, states[-1], lines, [ahead] * len(lines))
                for tokens, (token, _) in zip(fed, guessed, strict=True):
                    tokens.append(token)
        packed = torch.stack(states, 1).flatten(0, 1)  # (rows * (AHEAD + 1), D)
        judged = self._through(lines, packed, range(low, middle), 0, AHEAD + 1)
        rows = [line for line in lines for _ in range(AHEAD + 1)]
        chosen = self._choices(1, judged, rows, [*range(AHEAD + 1)] * len(lines))
        for number, (line, tokens) in enumerate(zip(lines, fed, strict=True)):
            own = chosen[number * (AHEAD + 1) : (number + 1) * (AHEAD + 1)]
            if not all(math.isfinite(worth) for _, worth in own):
                line.spoilt = True
                mine = judged[number * (AHEAD + 1) : (number + 1) * (AHEAD + 1)]
                line.row.poisoned = not bool(mine.isfinite().all())  # else it is the exits that are at fault
                continue
            for drafted, (token, worth) in zip([*tokens[1:], None], own, strict=True):
                if len(line.tokens) == line.most:
                    break
                line.tokens.append(token)
                line.steps.append(worth)
                if token != drafted or token in self._language.eos_token_ids:
                    break

    def _through(
        self, lines: Sequence[_Line], hidden: torch.Tensor, blocks: range, first: int, count: int
    ) -> torch.Tensor:
        """So many tokens of each row, from its `first` on, through some of the blocks."""
        before = [line.row.prompt.next_position + len(line.answer) - 1 + len(line.tokens) for line in lines]
        at = torch.tensor([start + first + i for start in before for i in range(count)], device=hidden.device)
        if self._language.position_axes > 1:
            at = at.repeat(self._language.position_axes, 1)
        return self._language.through(
            hidden,
            blocks,
            slots=[line.row.slot for line in lines],
            starts=[line.at + first for line in lines],
            counts=[count] * len(lines),
            positions=at,
            cache=self._cache,
        )

    def _choices(
        self, number: int, states: torch.Tensor, lines: Sequence[_Line], ahead: Sequence[int]
    ) -> list[tuple[int, float]]:
        """What an exit says after each of these tokens, and its log-probability."""
        logits = self._language.logits(self._exits.read(number, states))
        places = [len(line.answer) + len(line.tokens) + i for line, i in zip(lines, ahead, strict=True)]
        found = log_probs(logits, [line.row.sampling for line in lines], places)
        worth, tokens = found.max(-1)
        return list(zip(tokens.tolist(), worth.tolist(), strict=True))
