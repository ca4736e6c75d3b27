"""Hazards: learnt per position, leaning on the pooled figure where little was seen."""

from __future__ import annotations

import random

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


@pytest.mark.parametrize(("before", "after"), [(0.9, 0.2), (0.2, 0.9)])
def test_another_agreement_is_noticed_within_a_dozen_blocks_and_known_soon(before: float, after: float) -> None:
    hazards, rng = Hazards(), random.Random(0)

    def block(agreement: float) -> bool:
        accepted = next((k for k in range(4) if rng.random() >= agreement), 4)
        return hazards.observe(4, accepted)

    assert sum(block(before) for _ in range(300)) <= 1
    noticed = next(k for k in range(100) if block(after))
    assert noticed < 12
    assert not any(block(after) for _ in range(12))  # and is not surprised twice
    assert hazards.survival(1)[1] == pytest.approx(after, abs=0.2)  # forgetting alone is a fifth of the way there


def test_blocks_that_are_alike_hardly_ever_surprise() -> None:
    hazards, rng = Hazards(), random.Random(1)
    surprises = 0
    for _ in range(5000):
        surprises += hazards.observe(6, next((k for k in range(6) if rng.random() >= 0.7), 6))
    assert surprises <= 5


def test_what_is_old_counts_as_few_blocks() -> None:
    faded, whole = Hazards(), Hazards()
    for number in range(300):
        for each in (faded, whole):
            each.observe(1, number % 2)
    faded.fade(8)
    assert faded.survival(1)[1] == pytest.approx(0.5, abs=0.05)
    for _ in range(6):
        assert not any(each.observe(1, 1) for each in (faded, whole))
    assert whole.survival(1)[1] < 0.56 < 0.6 < faded.survival(1)[1]


def test_a_pass_brings_its_accepted_run_and_one_token() -> None:
    assert expected_tokens(geometric(0.5, 10), 3) == 1 + 0.5 + 0.25 + 0.125
    assert expected_tokens(geometric(0.9, 10), 0) == 1
