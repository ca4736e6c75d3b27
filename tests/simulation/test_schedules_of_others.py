"""PEARL and DSI as closed forms: reference values, and free-running stages beside them."""

from __future__ import annotations

import math

import pytest

from benchmarks.schedules import SETTINGS, dsi, dsi_lookahead, pearl
from benchmarks.simulator import TwoStages

PEARL = dict(zip(SETTINGS, (1.32, 1.33, 1.80, 1.93, 1.95), strict=True))
DSI = dict(zip(SETTINGS, (1.67, 1.90, 2.27, 2.70, 2.99), strict=True))


@pytest.mark.parametrize(("agreement", "ratio"), SETTINGS)
def test_reference_values(agreement: float, ratio: int) -> None:
    assert pearl(agreement, ratio, ratio) == pytest.approx(PEARL[agreement, ratio], rel=0.012)  # those were simulated
    assert dsi(agreement, ratio, ratio) == pytest.approx(DSI[agreement, ratio], abs=0.006)
    assert dsi(agreement, ratio, ratio) == pytest.approx(1 / (agreement / ratio + 1 - agreement))  # proposition 1


def test_free_running_stages_come_near_what_pearl_reaches_in_step() -> None:
    simulated = TwoStages(0.7, 10, passes=1500).asynchronous(0)
    assert simulated == pytest.approx(pearl(0.7, 10, 10), rel=0.03)
    assert abs(simulated - pearl(0.7, 10, 4)) > 0.15  # a block that is not the ratio is another schedule


def test_lookahead_is_the_least_that_keeps_the_servers_ahead_of_the_drafter() -> None:
    for ratio in (3, 5.5, 20):
        for servers in (1, 2, 7, 20):
            least = dsi_lookahead(ratio, servers)
            assert math.ceil(ratio / least) <= servers
            assert least == 1 or math.ceil(ratio / (least - 1)) > servers
    assert dsi(0.7, 20, 4) < dsi(0.7, 20, 20)
