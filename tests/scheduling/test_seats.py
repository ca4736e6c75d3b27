"""Who gets a seat in a pass, and when a pass waits for drafts: against the tokens a pass brings in the long run."""

from __future__ import annotations

import pytest

from cascade_runtime.scheduling.cost import StepCost
from cascade_runtime.scheduling.hazards import geometric
from cascade_runtime.scheduling.seats import Seats

COST = StepCost(base=0.0192, per_row=0.0004, per_token=0.0001)
FULL = 8


def rate(agreement: float, cost: StepCost, rows: int, *, join: bool) -> float:
    """Tokens per second in the long run where rows without drafts run at once, or sit out until they have FULL.

    A row is empty or full. An empty one that runs is full next time where its own token agrees, a full one is empty
    next time unless all of its drafts and one more agree, which is rare where agreement is not high.
    """
    full = sum(agreement**k for k in range(FULL + 1))
    if not join:  # half of the rows, all full, by turns
        return 0.5 * rows * full / cost.seconds(0.5 * rows, 0.5 * rows * (1 + FULL))
    empty = 1 / (1 + agreement / (1 - agreement ** (FULL + 1)))
    tokens, fed = empty + (1 - empty) * full, 1 + (1 - empty) * FULL
    return rows * tokens / cost.seconds(rows, rows * fed)


def seats(agreement: float, cost: StepCost = COST, *, pace_s: float = 0.0025, restart_s: float = 0.001) -> Seats:
    at = rate(agreement, cost, 16, join=True)
    return Seats(geometric(agreement, 33), cost, at, FULL, pace_s, restart_s)


@pytest.mark.parametrize("agreement", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("per_row", [0.0004, 0.004, 0.02])
def test_an_empty_row_joins_where_that_brings_more_in_the_long_run(agreement: float, per_row: float) -> None:
    cost = StepCost(COST.base, per_row, COST.per_token)
    joins = seats(agreement, cost).joins(0)
    assert joins is (rate(agreement, cost, 16, join=True) > rate(agreement, cost, 16, join=False))


def test_a_seat_is_worth_its_tokens_less_what_an_empty_row_lacks_afterwards_and_its_price() -> None:
    one = Seats(geometric(0.5, 8), StepCost(1.0, 0.25, 0.125), 1.0, 2, 1.0, 0.0)
    gap = (1.75 - 1.0 - 0.25) / (1 - 0.125 + 0.5)
    assert one.worth[0] == pytest.approx(1.0 - 0.5 * gap - 0.375)
    assert one.worth[2] == pytest.approx(1.75 - 0.875 * gap - 0.625)


def test_a_pass_waits_while_what_all_of_them_gain_is_more_than_what_it_makes_meanwhile() -> None:
    slow, quick = seats(0.7, pace_s=0.005), seats(0.7, pace_s=0.0005, restart_s=0.0)
    assert quick.wait([0] * 8, need=4)
    assert not quick.wait([4] * 8, need=4)
    assert not slow.wait([0], need=4)
    assert not quick.wait([0] * 8, need=0)


def test_the_time_until_drafting_has_begun_again_is_part_of_the_wait() -> None:
    assert seats(0.7, pace_s=0.001, restart_s=0.0).wait([0] * 8, need=2)
    assert not seats(0.7, pace_s=0.001, restart_s=0.02).wait([0] * 8, need=2)
    assert seats(0.7, pace_s=0.001, restart_s=0.02).wait([1] * 12, need=2)  # they are being drafted for already
