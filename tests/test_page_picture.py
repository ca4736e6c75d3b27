"""The README's picture is of the ask in the middle: not of the best one."""

from __future__ import annotations

from itertools import permutations

import pytest

from benchmarks.page_picture import Ask, main, median_ask


def test_the_picture_that_is_kept_has_the_median_ratio() -> None:
    asks = [Ask(37, 100.0, 100.0 * ratio, b"%d" % ratio) for ratio in (1, 2, 3, 4, 9)]
    for order in permutations(asks):
        assert median_ask(order).png == b"3"
    slow = Ask(37, 900.0, 1000.0, b"the longest, and no better")  # it is the ratio that counts, not a time
    assert median_ask([asks[3], slow, asks[1]]).png == b"2"


def test_an_even_number_of_asks_has_no_middle(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--asks", "6"])
    assert "--asks 6: an odd number" in capsys.readouterr().err
