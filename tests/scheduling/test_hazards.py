"""Hazards: learnt per position, leaning on the pooled figure where little was seen."""

from __future__ import annotations

import pytest

from cascade_runtime.scheduling.hazards import Hazards, expected_tokens, geometric


def test_each_position_learns_its_own_hazard() -> None:
    hazards = Hazards()
    for block in range(400):
        hazards.observe(3, 3 if block % 2 else 1)  # the second draft is refused every other time, others never
    survival = hazards.survival(3)
    assert survival[1] > 0.95 and survival[2] == pytest.approx(0.5, abs=0.1) and survival[3] > 0.9 * survival[2]


def test_a_position_never_seen_has_the_pooled_hazard() -> None:
    hazards = Hazards()
    for _ in range(100):
        hazards.observe(1, 1)
    survival = hazards.survival(2)
    assert survival[2] / survival[1] == pytest.approx(1 - hazards.pooled)


def test_old_blocks_are_forgotten() -> None:
    hazards = Hazards()
    for _ in range(500):
        hazards.observe(1, 0)
    for _ in range(500):
        hazards.observe(1, 1)
    assert hazards.survival(1)[1] > 0.9


def test_a_pass_brings_its_accepted_run_and_one_token() -> None:
    assert expected_tokens(geometric(0.5, 10), 3) == 1 + 0.5 + 0.25 + 0.125
    assert expected_tokens(geometric(0.9, 10), 0) == 1
