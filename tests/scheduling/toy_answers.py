"""What the models of a toy cascade say: the target, and lighter stages that agree with it so often."""

from __future__ import annotations

VOCAB, END = 5, 4


def truth(seed: int, prefix: tuple[int, ...]) -> int:
    """What the target says after `prefix`."""
    drawn = (hash((seed, prefix)) >> 7) % 29
    return END if drawn == 28 else drawn % END


def says(seed: int, stage: int, agreement: float, prefix: tuple[int, ...]) -> int:
    """What a lighter stage says: the truth with about this chance, else anything."""
    own = hash((seed, prefix, stage)) >> 9
    return truth(seed, prefix) if own % 1000 < 1000 * agreement else (own // 1000) % VOCAB


def answer(seed: int, limit: int) -> list[int]:
    """The target's own answer."""
    tokens: list[int] = []
    while len(tokens) < limit and (not tokens or tokens[-1] != END):
        tokens.append(truth(seed, tuple(tokens)))
    return tokens
