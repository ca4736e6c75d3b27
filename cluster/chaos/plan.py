"""`Fault` and `draw_faults`: which fault when. Pure, so that a seed tells a whole run."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from cascade_runtime.errors import ConfigError

KINDS = {
    "kill": "SIGKILL to a stage",
    "hang": "SIGSTOP to a stage, until it is replaced",
    "pause": "SIGSTOP to a stage, SIGCONT after half of the time that it may be silent: nothing may come of it",
    "controller": "SIGKILL to the controller",
    "node": "a node of the cluster is removed with all that runs on it, and another one joins",
}
_LEAST_GAP = 0.3  # of the mean gap


@dataclass(frozen=True)
class Fault:
    """at_s: since the load began. stage: whom it befalls; empty for a node."""

    at_s: float
    kind: str
    stage: str = ""


def draw_faults(
    seed: int, seconds: float, stages: Sequence[str], kinds: Sequence[str], every_s: float
) -> tuple[Fault, ...]:
    """Faults of these kinds, one every `every_s` seconds in the mean, the last one that long before the end. Every kind
    takes turns with the others, and every stage with the others, in an order drawn anew each time round.

    Raises `ConfigError` for a kind that is not known.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise ConfigError("faults", unknown or kinds, ", ".join(KINDS))
    rng = random.Random(seed)
    faults: list[Fault] = []
    turns: dict[str, list[str]] = {"kinds": [], **{kind: [] for kind in kinds}}

    def next_of(turn: str, choices: Sequence[str]) -> str:
        if not turns[turn]:
            turns[turn] = rng.sample(list(choices), len(choices))
        return turns[turn].pop()

    at_s = every_s
    while at_s <= seconds - every_s:
        kind = next_of("kinds", kinds)
        on_stage = kind in ("kill", "hang", "pause")
        stage = next_of(kind, stages) if on_stage else kind if kind == "controller" else ""
        faults.append(Fault(at_s, kind, stage))
        at_s += every_s * (_LEAST_GAP + (1 - _LEAST_GAP) * rng.expovariate(1.0))
    return tuple(faults)
