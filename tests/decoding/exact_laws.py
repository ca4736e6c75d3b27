"""Answers by enumeration: the engine and its rules driven along every branch that chance could take.

`outcomes` runs a program again and again, each time along another branch of its coins and draws (`Fork`), and sums the
probabilities of what it returns. `toy_engine` is the real engine over levels of three tokens whose laws are tables.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cascade_runtime.config import Recipe, SamplingParams, recipe_from_dict
from cascade_runtime.decoding.acceptance.law import Law
from cascade_runtime.decoding.acceptance.rejection import Rejection
from cascade_runtime.decoding.acceptance.rule import Rule
from cascade_runtime.decoding.decoder import Decoder
from cascade_runtime.decoding.level import Level
from cascade_runtime.decoding.row import PromptEmbeds, Row
from cascade_runtime.decoding.weightless import WeightlessLanguage
from cascade_runtime.engine import Engine, _Live

VOCAB = 3
Answers = dict[tuple[int, ...], float]


class Fork:
    """A `Chance` that follows a script of branches, and notes how many there were at each fork."""

    def __init__(self) -> None:
        self.script: list[int] = []
        self.begin()

    def begin(self) -> None:
        self.at, self.probability = 0, 1.0
        self.widths: list[int] = []

    def advance(self) -> bool:
        """The script of the next run; False after the last."""
        while self.widths and self.script[-1] == self.widths[-1] - 1:
            self.script.pop()
            self.widths.pop()
        if not self.widths:
            return False
        self.script[-1] += 1
        return True

    def _branch(self, chances: Sequence[float]) -> int:
        open_ways = [(way, chance) for way, chance in enumerate(chances) if chance > 0]
        if len(open_ways) == 1:
            self.probability *= open_ways[0][1]
            return open_ways[0][0]
        if self.at == len(self.script):
            self.script.append(0)
        way, chance = open_ways[self.script[self.at]]
        self.widths.append(len(open_ways))
        self.at += 1
        self.probability *= chance
        return way

    def keeps(self, probability: float, *where: int) -> bool:
        return self._branch([1.0 - probability, probability]) == 1

    def other(self, law: torch.Tensor, *where: int) -> int:
        return self._branch(law.tolist())

    def own(self, law: torch.Tensor, choice: int) -> int:
        return self._branch(law.tolist())


def outcomes(run: Callable[[], Hashable], fork: Fork) -> dict[Any, float]:
    """What `run` returns, and how probable that is, over all branches."""
    found: dict[Any, float] = {}
    fork.script = []
    while True:
        fork.begin()
        result = run()
        found[result] = found.get(result, 0.0) + fork.probability
        if not fork.advance():
            return found


def random_law(seed: int, level: int, prefix: Sequence[int]) -> torch.Tensor:
    """A law from Dirichlet(1, 1, 1), a function of all this alone."""
    numbers = np.random.default_rng([seed, level, *(token + 1 for token in prefix)])
    return torch.tensor(numbers.dirichlet(np.ones(VOCAB)))


def toy_laws(seed: int, levels: int, length: int) -> list[dict[tuple[int, ...], Law]]:
    """Per level: prefix -> law, for all prefixes up to a length."""
    prefixes = [p for n in range(length + 1) for p in itertools.product(range(VOCAB), repeat=n)]
    tables = []
    for k in range(levels):
        table = {prefix: random_law(seed, k, prefix) for prefix in prefixes}
        tables.append({prefix: Law(law, law) for prefix, law in table.items()})
    return tables


class TableDecoder(Decoder):
    """Rows of a real decoder; the laws are a table's, and no choice is made."""

    def __init__(self, table: dict[tuple[int, ...], Law]) -> None:
        language: Any = WeightlessLanguage(VOCAB, ())
        super().__init__(language, slots=2, max_len=64)
        self.table = table

    def _run(self, plans: Sequence[Any], groups: Sequence[int]) -> list[list[int]]:
        for plan in plans:
            plan.row.laws = {end: self.table[tuple(plan.wanted[:end])] for end in plan.chosen_at}
        return [self._settled(plan, [0] * plan.choices) for plan in plans]


@dataclass(eq=False)
class TableLevel(Level):
    """A level over a `TableDecoder`."""

    def tokenizer_tag(self) -> str:
        return "toy"


def toy_recipe(levels: int, gammas: Sequence[int], rule: str = "ratio", **acceptance: object) -> Recipe:
    """A recipe of so many levels; its checkpoints are never loaded."""
    names = [f"level{k}" for k in range(levels)]
    return recipe_from_dict(
        {
            "cascade": {"name": "toy", "levels": names, "num_draft_tokens": list(gammas), "acceptance": rule},
            "stages": {name: {"checkpoint": "family:light"} for name in names},
            "acceptance": acceptance,
        }
    )


class ToyCascade:
    """The engine over table levels; `answers` is the exact law of its answers of `length` tokens."""

    def __init__(self, tables: Sequence[dict[tuple[int, ...], Law]], gammas: Sequence[int], rule: Rule) -> None:
        levels = [TableLevel(f"level{k}", None, TableDecoder(table)) for k, table in enumerate(tables)]
        nothing: Any = None
        self.fork = Fork()
        self.engine = Engine(toy_recipe(len(tables), gammas), levels, nothing)
        acceptance = Rejection("toy", rule)
        acceptance.chance = self.fork  # type: ignore[assignment]
        self.engine.acceptance = acceptance

    def round(self, prefix: tuple[int, ...], length: int) -> Answers:
        """What one round of the target adds to a prefix."""
        return outcomes(lambda: self._added(prefix, SamplingParams(temperature=1.0, max_tokens=length)), self.fork)

    def sampled(self, length: int, seed: int) -> tuple[int, ...]:
        """One answer, by whatever chance the engine has."""
        answer: tuple[int, ...] = ()
        while len(answer) < length:
            answer += self._added(answer, SamplingParams(temperature=1.0, max_tokens=length, seed=seed))
        return answer[:length]

    def _added(self, prefix: tuple[int, ...], sampling: SamplingParams) -> tuple[int, ...]:
        prompt = PromptEmbeds(torch.empty(1, 0), torch.zeros(1, dtype=torch.long), 1)
        rows: list[Row | None] = [Row(0, prompt, sampling) for _ in self.engine.levels]
        live: Any = _Live(_Request(sampling), None, rows, _Never(), [_Uncounted()] * (len(rows) - 1), 0.0, [], 1)  # type: ignore[arg-type]
        (added,) = self.engine._advance(len(rows) - 1, [live], [[(token, 1) for token in prefix]], None)
        return tuple(token for token, _ in added)

    def answers(self, length: int) -> Answers:
        """Round after round until the answer is long enough."""
        done: Answers = {}
        going: Answers = {(): 1.0}
        while going:
            prefix = min(going, key=len)
            weight = going.pop(prefix)
            for added, chance in self.round(prefix, length).items():
                answer = (prefix + added)[:length]
                where = done if len(answer) == length else going
                where[answer] = where.get(answer, 0.0) + weight * chance
        return done


@dataclass(frozen=True)
class _Request:
    sampling: SamplingParams


class _Never:
    def is_end(self, token: int) -> bool:
        return False


class _Uncounted:
    def observe(self, drafted: int, accepted: int, bonus: int = 1) -> None:
        pass


def chain(law: Callable[[tuple[int, ...]], torch.Tensor], length: int) -> Answers:
    """The law of answers whose every token has this law."""
    out: Answers = {}
    for answer in itertools.product(range(VOCAB), repeat=length):
        out[answer] = 1.0
        for i, token in enumerate(answer):
            out[answer] *= float(law(answer[:i])[token])
    return out


def total_variation(a: Answers, b: Answers) -> float:
    return 0.5 * sum(abs(a.get(key, 0.0) - b.get(key, 0.0)) for key in {*a, *b})
