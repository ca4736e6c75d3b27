"""Ingestion is bounded at any event rate, the newest windows survive, and everything left out is counted."""

from __future__ import annotations

import numpy as np
import pytest
from edge.edge_ends import recording

from cascade_runtime.edge.ingest import Ingest, Window, windows_of
from cascade_runtime.errors import ConfigError
from cascade_runtime.events import Events


def numbers(ingest: Ingest) -> list[int]:
    taken = []
    while (window := ingest.next()) is not None:
        taken.append(window.number)
    return taken


def test_the_oldest_windows_are_dropped_for_the_newest() -> None:
    ingest = Ingest("newest", 3, 1000)
    assert all(ingest.offer(window) for window in windows_of(recording(8), 50_000))
    assert numbers(ingest) == [5, 6, 7]
    counts = ingest.counts
    assert (counts.windows, counts.dropped, counts.events, counts.events_dropped) == (8, 5, 320, 200)


def test_joined_windows_keep_every_event_until_they_grow_too_long() -> None:
    events = recording(8)
    ingest = Ingest("join", 3, 1000)
    for window in windows_of(events, 50_000):
        ingest.offer(window)
    first = ingest.next()
    assert first is not None and (first.number, first.begin_us, first.end_us) == (5, 7_000_000, 7_300_000)
    assert first.events == events.window(0, 300_000)
    assert (ingest.counts.joined, ingest.counts.dropped, ingest.counts.events_dropped) == (5, 0, 0)
    tight = Ingest("join", 1, 60)  # two windows of 40 do not fit one
    for window in windows_of(events, 50_000):
        tight.offer(window)
    assert numbers(tight) == [7]
    assert (tight.counts.joined, tight.counts.dropped) == (0, 7)


def test_where_nothing_may_be_left_out_the_source_waits_and_nothing_is_counted_twice() -> None:
    first, second, third = windows_of(recording(3), 50_000)
    ingest = Ingest("all", 2, 1000)
    assert ingest.offer(first) and ingest.offer(second)
    assert not ingest.offer(third)
    assert ingest.counts.windows == 2
    ingest.next()
    assert ingest.offer(third) and numbers(ingest) == [1, 2]
    assert (ingest.counts.windows, ingest.counts.dropped) == (3, 0)


def test_a_window_of_too_many_events_keeps_its_newest() -> None:
    events = recording(1, 100)
    ingest = Ingest("newest", 2, 30)
    ingest.offer(next(windows_of(events, 50_000)))
    window = ingest.next()
    assert window is not None and window.events == events.slice(70, 100)
    assert ingest.counts.events_dropped == 70


def test_quiet_windows_are_counted_and_not_sent() -> None:
    events = Events([0, 170_000], [1, 1], [1, 1], [0, 1], width=4, height=4)
    ingest = Ingest("newest", 2, 30)
    for window in windows_of(events, 50_000):
        ingest.offer(window)
    assert numbers(ingest) == [0, 3]
    assert (ingest.counts.windows, ingest.counts.empty) == (4, 2)


def test_windows_cover_the_recording_without_overlap() -> None:
    events = recording(5)
    windows: list[Window] = list(windows_of(events, 30_000))
    assert [window.begin_us for window in windows] == [7_000_000 + 30_000 * k for k in range(len(windows))]
    assert np.array_equal(np.concatenate([window.events.t for window in windows]), events.t)


@pytest.mark.parametrize(("keep", "capacity", "field"), [("oldest", 3, "keep"), ("all", 0, "waiting")])
def test_impossible_settings_are_named(keep: str, capacity: int, field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        Ingest(keep, capacity, 10)
