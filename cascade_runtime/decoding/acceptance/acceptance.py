"""`Acceptance`: how the engine asks, whatever the rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from cascade_runtime.decoding.acceptance.law import Law

Claims = dict[tuple[int, int], Law]
"""(level, position in the answer) -> the law of the token that this level said there, of one request and round."""


class Acceptance(Protocol):
    """Settles passes. weighs_laws: decoders must tell them. own: tokens (0 or 1) a level adds to a block that is kept
    whole; where it is 0, it is not fed the last draft. note, mark: what an answer and the name of an edge
    must say; empty for the target's law."""

    weighs_laws: bool
    own: int
    note: str
    mark: str

    def settle(
        self,
        level: int,
        seed: int,
        claims: Claims,
        laws: Mapping[int, Law],
        draft: Sequence[int],
        choices: Sequence[int],
    ) -> tuple[int, int | None]:
        """How many of the drafts `level` keeps, and the token it says then, if any.

        laws: its own, by position in the answer, after the prefix and after each draft it was fed; choices: what it
        chose there. Writes into `claims` what leaves this level, and reads what left the one below.
        """
        ...
