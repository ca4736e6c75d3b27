"""Rejection sampling along a block, for every rule that names a law.

Each position carries the law its token was drawn from given all that stands before it, and what decided how long the
block is was decided before the tokens were drawn. A token that was drawn is tested, never dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cascade_runtime.decoding.acceptance.acceptance import Claims
from cascade_runtime.decoding.acceptance.chance import Chance
from cascade_runtime.decoding.acceptance.law import Law
from cascade_runtime.decoding.acceptance.ratio import ratio_test
from cascade_runtime.decoding.acceptance.rule import Rule


class Rejection:
    """Settles passes by a rule; name: the recipe's word for it."""

    weighs_laws = True

    def __init__(self, name: str, rule: Rule) -> None:
        self.rule = rule
        self.chance = Chance()
        self.own = int(rule.follows)
        self.note = (
            f"lossy: drafts were accepted by {name}, so this is not the target's own answer" if rule.lossy else ""
        )
        self.mark = f" ({name})" if rule.lossy else ""

    def settle(
        self,
        level: int,
        seed: int,
        claims: Claims,
        laws: Mapping[int, Law],
        draft: Sequence[int],
        choices: Sequence[int],
    ) -> tuple[int, int | None]:
        """Test draft after draft. At the first refusal say a token of the residual; after all of them, where the level
        looked beyond the last, one of its own law.
        """
        at = min(laws)
        for i, token in enumerate(draft):
            q = claims[level - 1, at + i]
            law = claims[level, at + i] = self.rule.target(level - 1, q, laws[at + i])
            test = ratio_test(q.chances, law.chances)
            if not self.chance.keeps(float(test.keep[token]), seed, at + i, level):
                return i, self.chance.other(test.other, seed, at + i, level)
        beyond = at + len(draft)
        if beyond not in laws:
            return len(draft), None
        claims[level, beyond] = laws[beyond]
        return len(draft), self.chance.own(laws[beyond].chances, choices[len(draft)])
