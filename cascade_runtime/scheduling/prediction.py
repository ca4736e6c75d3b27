"""What a verifier can expect: tokens per second, by how many drafts it waits for and how far its drafter may run.

A row's passes form a Markov chain on the drafts that wait when a pass starts. After a refusal the drafter starts anew:
the row waits for `m` drafts. When all `h` drafts are accepted and the drafter's next token equals the verifier's own,
what was drafted meanwhile stands, and the next pass starts with that. Rows share passes, and all of them wait for those
that start anew: a row that is left out instead loses a whole pass (`seats.py`).

Against the reference values of the two-stage simulation (verify cost of one step, c the speed ratio, alpha the
agreement) this is within a few per cent for c >= 5; tests/scheduling/test_prediction.py pins the values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from cascade_runtime.scheduling.cost import StepCost

_CHAIN = 12  # passes in a row without a refusal that are followed before the chain is taken to have settled
_FIXED_POINT, _SETTLED = 4, 1e-3


@dataclass(frozen=True)
class Conditions:
    """What a stage has measured.

    cost: of a pass of its own. survival: S[k] of its drafter's tokens. pace_s: seconds per draft token and row.
    restart_s: from a refusal to the drafter's first token beyond what `pace_s` explains. rows: requests at hand.
    context: positions held per row. cores: how many the stage shares with all below it, 0 for none. work_s: of
    theirs, for a draft token; occupied: cores that a pass of its own keeps busy.
    """

    cost: StepCost
    survival: Sequence[float]
    pace_s: float
    restart_s: float = 0.0
    rows: int = 1
    context: float = 0.0
    cores: float = 0.0
    work_s: float = 0.0
    occupied: float = 1.0

    @cached_property
    def expected(self) -> list[float]:
        """Tokens that a pass brings, by the drafts it looks at."""
        return list(accumulate(self.survival))


@dataclass(frozen=True)
class Prediction:
    """tokens_per_s over all rows; of one row: drafts and tokens per pass, seconds per pass and of waiting, and
    drafts made per pass, whether or not it saw them.
    """

    tokens_per_s: float
    tokens_per_pass: float
    drafts_per_pass: float
    pass_s: float
    wait_s: float
    made_per_pass: float


def predict(at: Conditions, m: int, window: int, most: int | None = None) -> Prediction:
    """Run passes over at least `m` drafts and at most `most`, while the drafter stays within `window` of what is
    confirmed. Where stages share cores, all of them together get no further than these can: drafts that nobody looks at
    cost as much as those that are kept.
    """
    most = window if most is None else max(1, most)
    m = min(m, window, most)
    tokens = drafts = wait_s = others_s = made = pass_s = turn_s = without = 0.0
    for _ in range(_FIXED_POINT):
        pass_s = at.cost.seconds(at.rows, at.rows * (1.0 + (drafts or m)), at.rows * at.context)
        if drafts and at.rows == 1:
            pass_s -= without * at.cost.several
        if abs(pass_s + others_s - turn_s) < _SETTLED * pass_s:
            break
        turn_s = pass_s + others_s
        tokens, drafts, wait_s, made, anew, without = _chain(at, m, window, most, turn_s)
        if at.rows > 1 and m:
            wait_s = others_s = (1.0 - (1.0 - anew) ** at.rows) * (at.restart_s + m * at.pace_s)
    tokens_per_s = at.rows * tokens / (pass_s + wait_s)
    if at.cores:
        tokens_per_s = min(tokens_per_s, at.cores * tokens / (at.occupied * pass_s / at.rows + at.work_s * made))
    return Prediction(tokens_per_s, tokens, drafts, pass_s, wait_s, made)


def alone(at: Conditions) -> float:
    """Tokens per second without a drafter: every row one token a pass."""
    return at.rows / at.cost.seconds(at.rows, at.rows, at.rows * at.context)


def _chain(
    at: Conditions, m: int, window: int, most: int, pass_s: float
) -> tuple[float, float, float, float, float, float]:
    """Of one row in the long run, per pass: tokens, drafts, seconds of waiting, drafts made, and the chances that it
    follows a refusal and that it looks at no draft.
    """
    meanwhile = int(pass_s / at.pace_s) if at.pace_s > 0 else window
    top = len(at.survival) - 1
    weight, total = 1.0, 0.0
    tokens = drafts = waits = made = without = 0.0
    there, wait_s, new = m, at.restart_s + m * at.pace_s if m else 0.0, m
    for _ in range(_CHAIN):
        h = min(there, most, top)
        total += weight
        tokens += weight * at.expected[h]
        drafts += weight * h
        without += weight * (h == 0)
        waits += weight * wait_s
        ahead = max(there, min(window, there + meanwhile))
        made += weight * (new + ahead - there)
        if ahead <= h:
            break  # the drafter was not let go on: every pass starts anew
        weight *= at.survival[min(h + 1, top)]
        behind = max(0, m - (ahead - h - 1))
        wait_s = behind * at.pace_s
        there, new = ahead - h - 1 + behind, behind
        if weight < 1e-3:
            break
    return tokens / total, drafts / total, waits / total, made / total, 1.0 / total, without / total
