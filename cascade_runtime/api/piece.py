"""`Piece`: a piece of an answer's text as its round confirmed it: a string that knows its tokens, and who said them."""

from __future__ import annotations


class Piece(str):
    """Text that a round added to what may be shown, and the tokens of that round; the text may be empty where a
    character or a stop string is not decided yet. masks: per token, the stages that stand by it, as in `Answer`.
    """

    tokens: tuple[int, ...]
    masks: tuple[int, ...]

    def __new__(cls, text: str, tokens: tuple[int, ...] = (), masks: tuple[int, ...] = ()) -> Piece:
        piece = super().__new__(cls, text)
        piece.tokens, piece.masks = tokens, masks
        return piece

    def __reduce__(self) -> tuple[object, ...]:
        return (Piece, (str(self), self.tokens, self.masks))
