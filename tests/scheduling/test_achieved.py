"""Promises of decoding alone and with drafts are compared by what came of them."""

from __future__ import annotations

import pytest

from cascade_runtime.scheduling.achieved import Achieved


def test_nothing_is_made_of_one_mode_or_of_little() -> None:
    achieved = Achieved()
    for _ in range(200):
        achieved.observe(True, 2, 4.0)
    assert achieved.alone == 1.0
    for _ in range(20):
        achieved.observe(False, 1, 1.0)
    assert achieved.alone == 1.0


@pytest.mark.parametrize(
    ("with_drafts", "alone", "worth"),
    [(0.8, 1.0, 1.25), (0.5, 0.5, 1.0), (1.0, 0.9, 0.9), (0.1, 1.0, 1.5), (1.0, 0.1, 1 / 1.5)],
)
def test_what_came_of_a_mode_is_what_its_promise_is_worth(with_drafts: float, alone: float, worth: float) -> None:
    achieved = Achieved()
    for _ in range(100):
        achieved.observe(True, 4, 4 / with_drafts)
        achieved.observe(False, 1, 1 / alone)
    assert achieved.alone == pytest.approx(worth)


def test_the_latest_counts_most() -> None:
    achieved = Achieved()
    for came in (1, 2):
        for _ in range(1000):
            achieved.observe(True, 2, 2.0)
            achieved.observe(False, came, 1.6)
    assert achieved.alone == pytest.approx(2 / 1.6, rel=0.01)
