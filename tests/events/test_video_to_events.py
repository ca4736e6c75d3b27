"""The simulator against ESIM's loop over pixels and thresholds, and videos on disk."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_runtime.errors import EventFormatError, InputError
from cascade_runtime.events import EventSimulator, frames_to_events, video_to_events

VIDEO = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "video"


def esim(frames: np.ndarray, times: list[int], on: float, off: float) -> list[tuple[int, int, int, int]]:
    """rpg_vid2e's esim.cpp as written: a loop per pixel and threshold."""
    logs = np.log(frames / 255.0 + 1e-3)
    fired, out = logs[0].copy(), []
    for before, log, t0, t1 in zip(logs[:-1], logs[1:], times[:-1], times[1:], strict=True):
        for y, x in np.ndindex(*log.shape):
            start, end = before[y, x], log[y, x]
            if abs(end - start) < 1e-6:
                continue
            sign, step = (1, on) if end > start else (-1, off)
            level = fired[y, x] + sign * step
            while (start - 1e-7 < level <= end + 1e-7) if sign > 0 else (end - 1e-7 <= level < start + 1e-7):
                out.append((t0 + round((level - start) / (end - start) * (t1 - t0)), x, y, int(sign > 0)))
                fired[y, x] = level
                level += sign * step
    return sorted(out)


@given(st.integers(0, 2**32 - 1), st.sampled_from([(0.2, 0.2), (0.13, 0.31), (0.5, 0.17)]))
@settings(max_examples=25, deadline=None)
def test_vectorised_simulator_equals_the_loop(seed: int, thresholds: tuple[float, float]) -> None:
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (5, 3, 4)).astype(np.uint8)
    times = np.cumsum(rng.integers(100, 10_000, 5))
    events = frames_to_events(frames, times, threshold_on=thresholds[0], threshold_off=thresholds[1])
    found = sorted(zip(*(getattr(events, name).tolist() for name in "txyp"), strict=True))
    expected = esim(frames, times.tolist(), *thresholds)
    assert len(found) == len(expected)
    assert [row[1:] for row in sorted(found, key=lambda r: r[1:])] == [
        r[1:] for r in sorted(expected, key=lambda r: r[1:])
    ]
    assert all(abs(a[0] - b[0]) <= 1 for a, b in zip(found, expected, strict=True))


def test_a_pixel_that_brightens_fires_at_equal_log_steps() -> None:
    frames = np.array([[[0.1]], [[0.1 * math.exp(0.5)]]]) - np.array([[[0.0]], [[0.0]]])
    events = frames_to_events(frames, [0, 50_000], threshold_on=0.1)
    assert events.p.tolist() == [1, 1, 1, 1]  # log(0.1 + 1e-3) rises by 0.4960
    assert np.allclose(np.diff(events.t), 50_000 * 0.1 / 0.496, atol=10)


def test_a_pixel_that_returns_to_its_grey_level_leaves_no_drift() -> None:
    """Ties of 8-bit levels must not fire by rounding: as many events down as up."""
    frames = np.array([100, 180, 100, 180, 100] * 20, np.uint8).reshape(-1, 1, 1)
    events = frames_to_events(frames, np.arange(100) * 1000)
    per_rise = math.floor((math.log(180 / 255 + 1e-3) - math.log(100 / 255 + 1e-3)) / 0.2)
    assert events.p.sum() <= 40 * per_rise
    assert abs(2 * int(events.p.sum()) - len(events)) <= per_rise


def test_nothing_happens_in_a_still_scene() -> None:
    assert len(frames_to_events(np.full((10, 8, 8), 77, np.uint8), np.arange(10) * 1000)) == 0


def test_bounds_and_shapes_are_refused_by_name() -> None:
    flicker = np.tile(np.array([[[0]], [[255]]], np.uint8), (5, 50, 50))
    with pytest.raises(InputError, match="max_events"):
        frames_to_events(flicker, np.arange(10) * 1000, max_events=1000)
    frames = np.zeros((2, 3, 3), np.uint8)
    for arguments, field in (
        ((np.zeros((2, 3)), [0, 1]), "frames"),
        ((frames, [0, 1, 2]), "timestamps_us"),
        ((frames, [1, 1]), "timestamps_us"),
        ((frames.astype(float) + 2, [0, 1]), "frames"),
        ((np.zeros((1, 1, 5000), np.uint8), [0]), "frames"),
    ):
        with pytest.raises(InputError) as refused:
            frames_to_events(*arguments)
        assert refused.value.field == field
    with pytest.raises(InputError, match="threshold_on"):
        EventSimulator(threshold_on=0)


def test_a_video_written_here_becomes_the_events_of_its_frames(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    rng = np.random.default_rng(0)
    frames = np.repeat(np.repeat(rng.integers(0, 256, (6, 6, 8)), 8, axis=1), 8, axis=2).astype(np.uint8)
    with av.open(str(tmp_path / "clip.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=50)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "gray"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="gray")))
        container.mux(stream.encode())
    events = video_to_events(tmp_path / "clip.mkv")
    assert events == frames_to_events(frames, np.arange(6) * 20_000)
    assert len(video_to_events(tmp_path / "clip.mkv", max_frames=3)) < len(events)


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("av")
    (tmp_path / "a.mp4").write_bytes(b"not a video at all" * 10)
    with pytest.raises(EventFormatError, match=r"a\.mp4"):
        video_to_events(tmp_path / "a.mp4")
    with pytest.raises(InputError, match="path"):
        video_to_events(tmp_path / "absent.mp4")
    (tmp_path / "frames").mkdir()
    with pytest.raises(InputError, match="frames_per_second"):
        video_to_events(tmp_path / "frames")
    (tmp_path / "frames" / "info.txt").write_text("../../../etc/passwd\n")
    with pytest.raises(EventFormatError, match="line 1"):
        video_to_events(tmp_path / "frames")


@pytest.mark.skipif(not VIDEO.is_dir(), reason="the shared videos are not here")
def test_shared_frames_take_their_times_from_info_txt() -> None:
    pytest.importorskip("av")
    events = video_to_events(VIDEO / "office_zigzag_frames")
    assert 13_767 <= int(events.t[0]) <= int(events.t[-1]) <= 57_832
    assert (events.width, events.height) == (240, 180)
    assert 5_000 < len(events) < 50_000
