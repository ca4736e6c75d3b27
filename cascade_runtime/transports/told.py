"""`Told`: what of an answer was passed on, so that a stream that begins anew says nothing twice."""

from __future__ import annotations

from cascade_runtime.api import Piece
from cascade_runtime.transports.side_by_side import Tell


class Told:
    """Of one request. An answer is a function of its request: what comes again is what was told, cut elsewhere."""

    def __init__(self) -> None:
        self.tokens = self.characters = 0

    def filtered(self, tell: Tell) -> Tell:
        """Tells what goes beyond that, of pieces that begin at the answer's beginning."""
        tokens = characters = 0

        async def new(piece: Piece) -> None:
            nonlocal tokens, characters
            known, shown = max(0, self.tokens - tokens), max(0, self.characters - characters)
            tokens, characters = tokens + len(piece.tokens), characters + len(piece)
            self.tokens, self.characters = max(self.tokens, tokens), max(self.characters, characters)
            if piece.tokens[known:] or piece[shown:]:
                await tell(Piece(piece[shown:], piece.tokens[known:], piece.masks[known:], piece.words[known:]))

        return new
