"""When is a direction nearly right? Eight directions lie 45 degrees apart; towards and away have no neighbours."""

from __future__ import annotations

from cascade_runtime.training.facts import DIRECTIONS

IN_PLANE = 8
assert DIRECTIONS[IN_PLANE:] == ("toward", "away")


def near(said: int | None, truth: int) -> bool:
    """Whether a direction said is the true one or, in the picture's plane, 45 degrees off. Classes of DIRECTIONS."""
    if said is None or said >= IN_PLANE or truth >= IN_PLANE:
        return said == truth
    return (said - truth) % IN_PLANE in (0, 1, IN_PLANE - 1)
