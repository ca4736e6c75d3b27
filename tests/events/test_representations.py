"""Each representation's values against the formula written as a loop over events."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_runtime.errors import InputError
from cascade_runtime.events import REPRESENTATIONS, Events, read_events, represent

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "events"
RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


@st.composite
def crowded(draw: st.DrawFn) -> Events:
    """Few pixels and many events, so that pixels see both polarities."""
    width, height = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    row = st.tuples(st.integers(0, 50), st.integers(0, width - 1), st.integers(0, height - 1), st.integers(0, 1))
    rows = sorted(draw(st.lists(row, max_size=60)), key=lambda event: event[0])
    t, x, y, p = (np.array([event[i] for event in rows], np.int64) for i in range(4))
    return Events(t, x, y, p, width=width, height=height)


def loop(events: Events):
    return zip(events.t.tolist(), events.x.tolist(), events.y.tolist(), events.p.tolist(), strict=True)


def eventgpt_picture(events: Events) -> np.ndarray:
    """EventGPT's own loop (common/common.py), but for the sensor's size."""
    picture = np.full((events.height, events.width, 3), 255, np.uint8)
    for _, x, y, p in loop(events):
        picture[y, x] = BLUE if p == 0 else RED
    return picture


@given(crowded())
@settings(max_examples=80, deadline=None)
def test_last_wins_is_bit_equal_to_the_loop_over_events(events: Events) -> None:
    assert np.array_equal(represent(events, "event_frame/last_wins"), eventgpt_picture(events))


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared real recordings are not here")
@pytest.mark.parametrize("name", ["eventgpt_sample1.npy", "dsec_interlaken_00_d_000079.npy"])
def test_last_wins_is_bit_equal_on_real_recordings(name: str) -> None:
    events = read_events(SHARED / name)
    expected = eventgpt_picture(events)
    assert np.array_equal(represent(events, "event_frame/last_wins"), expected)
    tight = represent(events, "event_frame/last_wins", tight=True)
    assert np.array_equal(tight, expected[: events.y.max() + 1, : events.x.max() + 1])


def test_the_two_event_frames_differ_where_an_off_event_came_last() -> None:
    events = Events([0, 1, 2, 3], [0, 0, 1, 1], [0, 0, 0, 0], [1, 0, 0, 1], width=3, height=1)
    assert represent(events, "event_frame/last_wins")[0].tolist() == [list(BLUE), list(RED), list(WHITE)]
    assert represent(events, "event_frame/on_over_off")[0].tolist() == [list(RED), list(RED), list(WHITE)]


@given(crowded())
@settings(max_examples=40, deadline=None)
def test_on_over_off_histogram_time_surface_and_density_by_definition(events: Events) -> None:
    shape = (events.height, events.width)
    counts, last = np.zeros((2, *shape), np.int32), np.zeros((2, *shape))
    patches = np.zeros((math.ceil(shape[0] / 2), math.ceil(shape[1] / 2)), np.int64)
    for t, x, y, p in loop(events):
        counts[p, y, x] += 1
        last[p, y, x] = math.exp((t - int(events.t[-1])) / 20.0)
        patches[y // 2, x // 2] += 1
    assert np.array_equal(represent(events, "histogram"), counts)
    assert np.allclose(represent(events, "time_surface", tau_us=20.0), last, atol=1e-6)
    assert np.array_equal(represent(events, "density", patch=2), patches)
    frame = represent(events, "event_frame/on_over_off")
    assert np.array_equal((frame == RED).all(axis=2), counts[1] > 0)
    assert np.array_equal((frame == BLUE).all(axis=2), (counts[0] > 0) & (counts[1] == 0))


@given(crowded(), st.integers(1, 7))
@settings(max_examples=60, deadline=None)
def test_voxel_grid_by_zhus_formula(events: Events, bins: int) -> None:
    expected = np.zeros((bins, events.height, events.width))
    for t, x, y, p in loop(events):
        u = (bins - 1) * (t - int(events.t[0])) / max(events.duration_us, 1)
        for b in range(bins):
            expected[b, y, x] += (2 * p - 1) * max(0.0, 1.0 - abs(b - u))
    assert np.allclose(represent(events, "voxel_grid", bins=bins), expected, atol=1e-5)


def test_voxel_grid_counts_off_events_as_negative_and_loses_none() -> None:
    events = Events([0, 25, 100], [0, 0, 0], [0, 0, 0], [0, 0, 1], width=1, height=1)
    assert represent(events, "voxel_grid", bins=5)[:, 0, 0].tolist() == [-1.0, -1.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize("name", REPRESENTATIONS)
def test_an_empty_recording_has_an_empty_representation(name: str) -> None:
    empty = represent(Events([], [], [], [], width=6, height=4), name)
    assert (empty == (255 if name.startswith("event_frame") else 0)).all()


def test_representations_do_not_depend_on_the_origin_of_time() -> None:
    rng = np.random.default_rng(1)
    x, y, p = rng.integers(0, 8, 50), rng.integers(0, 8, 50), rng.integers(0, 2, 50)
    t = np.sort(rng.integers(0, 1000, 50))
    early, late = (Events(t + shift, x, y, p, width=8, height=8) for shift in (0, 10**15))
    for name in REPRESENTATIONS:
        assert np.array_equal(represent(early, name), represent(late, name))


def test_unknown_names_and_options_say_what_is_allowed() -> None:
    events = Events([0], [0], [0], [0], width=1, height=1)
    with pytest.raises(InputError, match="event_frame/last_wins"):
        represent(events, "event_frame")
    with pytest.raises(InputError, match="bins"):
        represent(events, "voxel_grid", bin=3)
    for name, option in (("voxel_grid", {"bins": 0}), ("time_surface", {"tau_us": 0}), ("density", {"patch": 0})):
        with pytest.raises(InputError):
            represent(events, name, **option)
