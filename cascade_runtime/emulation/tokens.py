"""Who says what on emulated devices: `tokens_of` gives the `Tokens` of a recipe.

    agreement   `simulation.tokens.Agreement`: made up, a drafter agrees with the next stage with a given chance
    recorded    the target says a recorded answer, a drafter what it was recorded to say at that position of it
    ngram       the target says a recorded answer, a drafter what follows most often in the other half of the answers

A request is a number here, a function of question, recording and, where the answer is sampled, seed.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from cascade_runtime.config import Recipe, SamplingParams
from cascade_runtime.emulation.answers import RecordedAnswers, read_answers
from cascade_runtime.simulation import Agreement, Tokens
from cascade_runtime.simulation.tokens import uniform

_BEFORE = -1  # stands before an answer's first token


def request_number(question: str, source: str) -> int:
    """What tells one request's tokens from another's, the same in every process. source: the recording's hash."""
    return int.from_bytes(hashlib.blake2b(repr((question, source)).encode(), digest_size=7).digest(), "little")


def sampled(request: int, sampling: SamplingParams) -> int:
    """The request's number when it is sampled so: another one for each seed, the same for all greedy ones."""
    return request if sampling.temperature == 0 else int(uniform(request, sampling.seed) * 2**52)


class NGram:
    """What most often follows the last tokens of a text, the longest context that was seen first (stupid backoff).

    order: tokens of an n-gram, the predicted one included. Ties go to the smallest id.
    """

    def __init__(self, order: int, answers: Iterable[Sequence[int]]) -> None:
        counts: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for answer in answers:
            padded = [_BEFORE] * (order - 1) + list(answer)
            for at in range(order - 1, len(padded)):
                for length in range(order):
                    counts[tuple(padded[at - length : at])][padded[at]] += 1
        self._order = order
        self._next = {context: min(seen, key=lambda t: (-seen[t], t)) for context, seen in counts.items()}

    def choice(self, prefix: Sequence[int]) -> int:
        """The token after `prefix`."""
        padded = [_BEFORE] * (self._order - 1) + list(prefix[-self._order :])
        context = padded[len(padded) - self._order + 1 :]
        for start in range(len(context) + 1):
            token = self._next.get(tuple(context[start:]))
            if token is not None:
                return token
        return 0  # nothing was fitted


class _Recorded:
    """A request gets one of the target's recorded answers; past its end, the end again."""

    def __init__(self, answers: RecordedAnswers, asked: Sequence[int], seed: int) -> None:
        self.answers, self.asked, self.seed = answers, asked, seed
        self.vocab_size, self.ends = answers.vocab_size, (answers.end,)

    def _answer(self, request: int) -> int:
        return self.asked[(request + self.seed) % len(self.asked)]

    def _at(self, level: int, request: int, position: int) -> int:
        said = self.answers.by_level[level][self._answer(request)]
        return said[position] if position < len(said) else self.answers.end


class RecordedTokens(_Recorded):
    """`recorded`: every stage says what was recorded of it at that position, whatever the prefix holds."""

    def choice(self, stage: int, request: int, prefix: tuple[int, ...]) -> int:
        """The token."""
        return self._at(stage, request, len(prefix))


class NGramTokens(_Recorded):
    """`ngram`: drafters are fitted on answers 0, 2, 4, ...; questions get answers 1, 3, 5, ..."""

    def __init__(self, answers: RecordedAnswers, orders: Sequence[int], seed: int) -> None:
        count = len(answers.target)
        super().__init__(answers, range(1, count, 2), seed)
        ended = [said if said[-1:] == (answers.end,) else (*said, answers.end) for said in answers.target[::2]]
        self.drafters = [NGram(order, ended) for order in orders]

    def choice(self, stage: int, request: int, prefix: tuple[int, ...]) -> int:
        """The token."""
        if stage < len(self.drafters):
            return self.drafters[stage].choice(prefix)
        return self._at(-1, request, len(prefix))


def tokens_of(recipe: Recipe) -> tuple[Tokens, tuple[int, ...], str]:
    """Who says what in an emulated recipe, the ids that end an answer, and a tag of both that neighbours compare.

    Raises `ConfigError` for a file of answers that cannot be used.
    """
    config = recipe.emulation
    assert config is not None  # the recipe checked that
    *drafters, target = recipe.cascade.levels
    if config.drafters == "agreement":
        tag = hashlib.blake2b(repr(config).encode(), digest_size=8).hexdigest()
        return Agreement(config.agreement, config.seed), (), tag
    if config.drafters == "recorded":
        answers = read_answers(config.answers, recipe.cascade.levels)
        tokens = RecordedTokens(answers, range(len(answers.target)), config.seed)
    else:
        answers = read_answers(config.answers, [*[None] * len(drafters), target])
        orders = config.orders or tuple(range(2, 2 + len(drafters)))
        tokens = NGramTokens(answers, orders, config.seed)
    tag = hashlib.blake2b(repr((config.drafters, config.orders, config.seed, answers.digest)).encode(), digest_size=8)
    return tokens, tokens.ends, tag.hexdigest()
