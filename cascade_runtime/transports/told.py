"""`Told`: what of an answer was passed on, so that a stream that begins anew says nothing twice."""

from __future__ import annotations

from cascade_runtime.api import Answer, Piece
from cascade_runtime.errors import RemoteError
from cascade_runtime.transports.side_by_side import Tell

_ANOTHER = "the answer broke off, and what came when it was asked for again is another one"


class Told:
    """Of one request. An answer is a function of its request: what comes again is what was told, cut elsewhere. Under a
    rule by which it is not, somebody would be told the halves of two answers: that is refused.
    """

    def __init__(self) -> None:
        self.tokens, self.text = list[int](), ""

    def checked(self, answer: Answer) -> Answer:
        """The whole answer, if it is one of which this was told; else `RemoteError`."""
        if not answer.text.startswith(self.text):
            raise RemoteError(_ANOTHER)
        return answer

    def filtered(self, tell: Tell) -> Tell:
        """Tells what goes beyond that, of pieces that begin at the answer's beginning. What it tells with raises
        `RemoteError` for another answer than was begun.
        """
        tokens = characters = 0

        async def new(piece: Piece) -> None:
            nonlocal tokens, characters
            known, shown = max(0, len(self.tokens) - tokens), max(0, len(self.text) - characters)
            before = self.tokens[tokens : tokens + len(piece.tokens)], self.text[characters : characters + len(piece)]
            if before != (list(piece.tokens[:known]), piece[:shown]):
                raise RemoteError(_ANOTHER)
            tokens, characters = tokens + len(piece.tokens), characters + len(piece)
            self.tokens += piece.tokens[known:]
            self.text += piece[shown:]
            if piece.tokens[known:] or piece[shown:]:
                await tell(Piece(piece[shown:], piece.tokens[known:], piece.masks[known:], piece.words[known:]))

        return new
