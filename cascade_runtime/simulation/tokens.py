"""Who says what in a simulated cascade: a `Tokens` model answers for every stage, deterministically."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from cascade_runtime.errors import InputError

_MASK = (1 << 64) - 1


class Tokens(Protocol):
    """choice(stage, request, prefix): what that stage says after the answer `prefix` of a request; the last stage's
    choices are the answer. It is over with one of `ends`, if there are any."""

    vocab_size: int
    ends: tuple[int, ...]

    def choice(self, stage: int, request: int, prefix: tuple[int, ...]) -> int:
        """The token."""
        ...


def uniform(*parts: object) -> float:
    """A number in [0, 1) that is a function of ints and tuples of ints alone."""
    x = hash(parts) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return ((x ^ (x >> 31)) >> 11) * 2.0**-53


class Agreement:
    """Each stage says what the next one would say with a given chance, independently at every prefix.

    agreement[k]: stage k with stage k + 1, one chance for all positions of an answer, or one for each of its first
    positions, which then repeat (a measured table, say). Drafts of stage 0 that reach the target unverified therefore
    agree with the product. A wrong prefix leads to other words: what was drafted on it is of no use.
    """

    vocab_size = 1 << 20
    ends = ()

    def __init__(self, agreement: Sequence[float | Sequence[float]], seed: int = 0) -> None:
        self.agreement = list(agreement)
        self.seed = seed
        for k, chances in enumerate(self.agreement):
            if isinstance(chances, Sequence) and not chances:
                raise InputError(f"agreement[{k}]", chances, "one chance or more")

    def choice(self, stage: int, request: int, prefix: tuple[int, ...]) -> int:
        """The token."""
        last, token = len(self.agreement), int(uniform(self.seed, request, prefix) * self.vocab_size)
        for k in range(last - 1, stage - 1, -1):
            chance = self.agreement[k]
            if isinstance(chance, Sequence):
                chance = chance[len(prefix) % len(chance)]
            if uniform(self.seed, request, prefix, k) >= chance:
                return (token + 1 + k) % self.vocab_size
        return token
