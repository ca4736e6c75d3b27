"""`Achieved`: how far predictions come true, with drafts and without. What both miss alike decides nothing.

A prediction leaves things out: rows that come and go, messages, neighbours that take their share. Where it promises
more of one mode than of the other and less comes, the one that comes to more is right.
"""

from __future__ import annotations

_FORGET = 0.995  # per row and pass: the last two hundred count
_ENOUGH = 24.0  # of them before anything is made of it
_MOST = 1.5  # that one mode is corrected against the other


class Achieved:
    """Tokens that came beside tokens that were promised."""

    def __init__(self) -> None:
        self._came = {True: 0.0, False: 0.0}
        self._promised = {True: 0.0, False: 0.0}
        self._seen = {True: 0.0, False: 0.0}

    def observe(self, drafting: bool, tokens: int, promised: float) -> None:
        """A row has grown by so many tokens, where a prediction promised so many for the time it took."""
        self._came[drafting] = _FORGET * self._came[drafting] + tokens
        self._promised[drafting] = _FORGET * self._promised[drafting] + promised
        self._seen[drafting] = _FORGET * self._seen[drafting] + 1.0

    @property
    def alone(self) -> float:
        """What a promise of decoding alone is worth, in promises of decoding with drafts."""
        if min(self._seen.values()) < _ENOUGH or not all(self._promised.values()):
            return 1.0
        with_drafts, alone = (self._came[mode] / self._promised[mode] for mode in (True, False))
        return min(_MOST, max(1.0 / _MOST, alone / with_drafts)) if with_drafts else _MOST
