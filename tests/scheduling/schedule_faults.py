"""`Faults`: what may go wrong in a schedule, and how often."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Faults:
    """Chances per message (per turn for `spoilt`), whether a stage may die, requests be cancelled, and who died be
    started anew; then the target may die as well.
    """

    lost: float = 0.0
    repeated: float = 0.0
    reordered: float = 0.0
    stale: float = 0.0
    gap: float = 0.0
    forged: float = 0.0
    spoilt: float = 0.0
    dies: bool = False
    cancels: bool = False
    revives: bool = False

    @staticmethod
    def drawn(rng: random.Random) -> Faults:
        """Any mixture."""
        heavy = [rng.choice((0.0, 0.0, 0.1, 0.4)) for _ in range(6)]
        spoilt, dies, cancels = rng.choice((0.0, 0.3)), rng.random() < 0.35, rng.random() < 0.4
        return Faults(*heavy, spoilt, dies, cancels, revives=rng.random() < 0.6)
