"""`Rule`: which law leaves a level, given the law of its drafts and its own."""

from __future__ import annotations

from typing import Protocol

from cascade_runtime.decoding.acceptance.law import Law


class Rule(Protocol):
    """target(edge, q, p): the law of the token that leaves the verifier of an edge (0 the lightest).

    q: the law its draft was drawn from. p: the verifier's own. follows: after a block kept whole the verifier adds a
    token of its own law; a rule whose law depends on q cannot, since nothing was drafted there. lossy: what leaves the
    last level is not the target's law.
    """

    lossy: bool
    follows: bool

    def target(self, edge: int, q: Law, p: Law) -> Law:
        """The law."""
        ...
