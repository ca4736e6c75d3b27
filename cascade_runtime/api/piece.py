"""`Piece`: what a stream yields while an answer grows: text that later tokens cannot change, and who said what."""

from __future__ import annotations

from collections.abc import Sequence


class Piece(str):
    """A piece of text, with the tokens that were confirmed with it.

    token_ids, masks: the tokens and, for each, the bit mask of the stages that stand by it, as in `Answer`. pieces: the
    text that each of them adds; empty where nobody asked for it. The texts of tokens may run ahead of this text, which
    holds back what could become a stop string or is half a character; the answer has the last word.
    """

    token_ids: tuple[int, ...]
    masks: tuple[int, ...]
    pieces: tuple[str, ...]

    def __new__(
        cls, text: str, token_ids: Sequence[int] = (), masks: Sequence[int] = (), pieces: Sequence[str] = ()
    ) -> Piece:
        self = super().__new__(cls, text)
        self.token_ids, self.masks, self.pieces = tuple(token_ids), tuple(masks), tuple(pieces)
        return self

    def __reduce__(self) -> tuple[object, ...]:
        return (Piece, (str(self), self.token_ids, self.masks, self.pieces))
