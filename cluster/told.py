"""`Told`: what of an answer was passed on, so that a stream that begins anew says nothing twice."""

from __future__ import annotations

from collections.abc import Callable

from cascade_runtime.api import Answer, Piece
from cascade_runtime.errors import CascadeError

Tell = Callable[[Piece | Answer | CascadeError], None]  # what is news of one request


class Told:
    """Of one request. An answer is a function of its request: what comes again is what was told, cut elsewhere."""

    def __init__(self) -> None:
        self.tokens = self.characters = 0

    def filtered(self, tell: Tell) -> Tell:
        """Tells what goes beyond that, of pieces that begin at the answer's beginning."""
        tokens = characters = 0

        def new(update: Piece | Answer | CascadeError) -> None:
            nonlocal tokens, characters
            if not isinstance(update, Piece):
                tell(update)
                return
            known, shown = max(0, self.tokens - tokens), max(0, self.characters - characters)
            tokens, characters = tokens + len(update.tokens), characters + len(update)
            self.tokens, self.characters = max(self.tokens, tokens), max(self.characters, characters)
            if update.tokens[known:] or update[shown:]:
                tell(Piece(update[shown:], update.tokens[known:], update.masks[known:], update.words[known:]))

        return new
