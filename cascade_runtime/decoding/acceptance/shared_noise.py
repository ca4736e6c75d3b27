"""The default: a draft is kept where it is what the verifier chooses itself, given the noise all levels share.

Exact at any depth and for any drafts, since the answer is the last level's own choices (`decoding/choice.py`); needs
no laws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cascade_runtime.decoding.acceptance.acceptance import Claims
from cascade_runtime.decoding.acceptance.law import Law


class SharedNoise:
    """Token equality."""

    weighs_laws = False
    own = 1
    note = ""
    mark = ""

    def settle(
        self,
        level: int,
        seed: int,
        claims: Claims,
        laws: Mapping[int, Law],
        draft: Sequence[int],
        choices: Sequence[int],
    ) -> tuple[int, int | None]:
        """The run that equals the level's choices, and its next choice."""
        accepted = 0
        while accepted < len(draft) and draft[accepted] == choices[accepted]:
            accepted += 1
        return accepted, choices[accepted]
