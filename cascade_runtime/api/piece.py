"""`Piece`: a piece of an answer's text as its round confirmed it: a string that knows its tokens, and who said them."""

from __future__ import annotations

from collections.abc import Sequence


class Piece(str):
    """Text that a round added to what may be shown, and the tokens of that round; the text may be empty where a
    character or a stop string is not decided yet.

    masks: per token, the stages that stand by it, as in `Answer`. words: the text that each token adds, empty where
    nobody asked for it; it may run ahead of what may be shown, and the answer has the last word.
    """

    tokens: tuple[int, ...]
    masks: tuple[int, ...]
    words: tuple[str, ...]

    def __new__(
        cls, text: str, tokens: Sequence[int] = (), masks: Sequence[int] = (), words: Sequence[str] = ()
    ) -> Piece:
        piece = super().__new__(cls, text)
        piece.tokens, piece.masks, piece.words = tuple(tokens), tuple(masks), tuple(words)
        return piece

    def __reduce__(self) -> tuple[object, ...]:
        return (Piece, (str(self), self.tokens, self.masks, self.words))
