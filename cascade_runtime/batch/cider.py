"""`Cider`: CIDEr-D (Vedantam, Zitnick, Parikh, CVPR 2015) of open answers, each against the one right answer.

The number is the one of the authors' scorer as `pycocoevalcap` hands it out (0 to 10; papers write 100 for 1), for the
same words. That package brings 100 MB of Java for its tokenizer, which is why it is not used. Per n from 1 to 4 an
answer is a vector of its n-grams' counts times their inverse document frequency, log(N / answers that have it):

    10 / 4 * sum over n of  <min(said, right), right> / (|said| |right|) * exp(-(l_said - l_right)^2 / (2 * 6^2))

with l, as in that scorer, the number of bigrams.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

_ORDER = 4
_SIGMA = 6.0
_SCALE = 10.0
_MOST = 200_000  # answers that are kept, since what a word is worth depends on all of them

Grams = Counter[tuple[str, ...]]


class Cider:
    """The score of a corpus; what is added is kept until it is asked for."""

    def __init__(self) -> None:
        self._pairs: list[tuple[Sequence[str], Sequence[str]]] = []
        self._too_many = False

    def add(self, said: Sequence[str], right: Sequence[str]) -> None:
        """The words of one answer and of the right one."""
        if len(self._pairs) < _MOST:
            self._pairs.append((said, right))
        else:
            self._too_many = True

    def score(self) -> float | None:
        """None for fewer than two answers, where no word is worth anything, and for more than are kept."""
        if len(self._pairs) < 2 or self._too_many:
            return None
        frequency: Counter[tuple[str, ...]] = Counter()
        for _, right in self._pairs:
            frequency.update(_grams(right).keys())
        total = sum(_alike(_grams(said), _grams(right), frequency, len(self._pairs)) for said, right in self._pairs)
        return round(total / len(self._pairs), 4)


def _grams(words: Sequence[str]) -> Grams:
    return Counter(
        tuple(words[at : at + order]) for order in range(1, _ORDER + 1) for at in range(len(words) - order + 1)
    )


def _alike(said: Grams, right: Grams, frequency: Counter[tuple[str, ...]], answers: int) -> float:
    def weighted(grams: Grams, order: int) -> dict[tuple[str, ...], float]:
        return {
            gram: count * (math.log(answers) - math.log(max(1, frequency[gram])))
            for gram, count in grams.items()
            if len(gram) == order
        }

    difference = sum(count for gram, count in said.items() if len(gram) == 2)
    difference -= sum(count for gram, count in right.items() if len(gram) == 2)
    penalty = math.exp(-(difference**2) / (2 * _SIGMA**2))
    total = 0.0
    for order in range(1, _ORDER + 1):
        one, other = weighted(said, order), weighted(right, order)
        lengths = math.sqrt(sum(value**2 for value in one.values()) * sum(value**2 for value in other.values()))
        if lengths:
            total += sum(min(one[gram], other[gram]) * other[gram] for gram in one.keys() & other.keys()) / lengths
    return _SCALE * penalty * total / _ORDER
