"""Frames or a video -> simulated events: ESIM's log-intensity thresholds (Rebecq et al., CoRL 2018; rpg_vid2e
esim.cpp).

Each pixel remembers the log intensity of its last event and fires once for each threshold that log(I + eps) crosses,
at the time where the straight line between two frames crosses it. Vectorised over a frame pair; state is one float64
per pixel. At 25-30 frames per second the result is bursts, linear in time, without microsecond structure: say
"simulated" wherever it is used.

    frames_to_events(frames, timestamps_us)   arrays in memory
    video_to_events(path)                     a video file, or a folder of images (PyAV: pip install
    cascade-runtime[video]) EventSimulator                            one frame at a time
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cascade_runtime.errors import EventFormatError, InputError
from cascade_runtime.events.array import MAX_SENSOR_SIDE, MAX_TIME_US, Events

_EPS = 1e-3
_TIE = 1e-6
"""Thresholds: an 8-bit pixel that returns to its old grey level must not fire by a rounding error."""
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".pgm", ".tif", ".tiff")
_MAX_INFO_BYTES = 16 * 2**20


class EventSimulator:
    """Feeds on frames in order; `step` gives the events since the one before, `finish` all of them."""

    def __init__(self, *, threshold_on: float = 0.2, threshold_off: float = 0.2, max_events: int = 100_000_000) -> None:
        for name, value in (("threshold_on", threshold_on), ("threshold_off", threshold_off)):
            if not 0.01 <= value <= 10:
                raise InputError(name, value, "a log-intensity step from 0.01 to 10")
        self._on, self._off, self._max_events = threshold_on, threshold_off, max_events
        self._parts: list[list[NDArray[Any]]] = []
        self._count = 0
        self._before: NDArray[np.float64] | None = None
        self._fired = np.zeros((0, 0))
        self._t_us = 0

    def step(self, frame_HW: ArrayLike, t_us: int) -> None:
        """frame: (H, W) uint8, or floats in 0..1; t_us later than the frame before. Raises InputError."""
        log = _log_intensity(np.asarray(frame_HW))
        if not -MAX_TIME_US < t_us < MAX_TIME_US:
            raise InputError("timestamps_us", t_us, "an integer within +-2**62")
        if self._before is None:
            self._fired = log.copy()
        else:
            if log.shape != self._before.shape:
                raise InputError("frames", log.shape, f"one size, {self._before.shape}")
            if t_us <= self._t_us:
                raise InputError("timestamps_us", t_us, f"later than the frame before ({self._t_us})")
            self._cross(self._before, log, self._t_us, int(t_us))
        self._before, self._t_us = log, int(t_us)

    def finish(self) -> Events:
        """Everything so far, sorted by time; `t_offset_us` is 0, times are those of the frames."""
        if self._before is None:
            raise InputError("frames", "none", "at least one frame")
        height, width = self._before.shape
        columns = (
            [np.concatenate(parts) for parts in zip(*self._parts, strict=True)]
            if self._parts
            else [np.zeros(0, int)] * 4
        )
        return Events(*columns, width=width, height=height)

    def _cross(self, before: NDArray[np.float64], log: NDArray[np.float64], t0_us: int, t1_us: int) -> None:
        change = log - self._fired
        count = np.maximum(np.floor(change / self._on + _TIE), np.floor(-change / self._off + _TIE)).astype(np.int64)
        y, x = np.nonzero(count > 0)
        if not len(y):
            return
        crossings = count[y, x]
        total = int(crossings.sum())
        self._count += total
        if self._count > self._max_events:
            raise InputError("events", self._count, f"at most max_events={self._max_events}; raise the thresholds")
        step = np.where(change[y, x] > 0, self._on, -self._off)
        number = np.arange(total) - np.repeat(np.cumsum(crossings) - crossings, crossings) + 1
        y_all, x_all, step_all = (np.repeat(values, crossings) for values in (y, x, step))
        level = self._fired[y_all, x_all] + number * step_all
        start, end = before[y_all, x_all], log[y_all, x_all]
        moved = end - start
        share = np.clip((level - start) / np.where(np.abs(moved) < _TIE, 1.0, moved), 0.0, 1.0)
        t = t0_us + np.rint(share * (t1_us - t0_us)).astype(np.int64)
        order = np.argsort(t, kind="stable")
        columns = (t, x_all.astype(np.uint16), y_all.astype(np.uint16), (step_all > 0).astype(np.uint8))
        self._parts.append([column[order] for column in columns])
        self._fired[y, x] += crossings * step


def frames_to_events(
    frames_THW: ArrayLike,
    timestamps_us: ArrayLike,
    *,
    threshold_on: float = 0.2,
    threshold_off: float = 0.2,
    max_events: int = 100_000_000,
) -> Events:
    """(T, H, W) grey frames, uint8 or floats in 0..1, at T strictly increasing times -> events at absolute times.

    Thresholds are steps of natural-log intensity. Raises InputError: shapes, values, times, or more than max_events.
    """
    frames, times = np.asarray(frames_THW), np.asarray(timestamps_us)
    if frames.ndim != 3 or not len(frames):
        raise InputError("frames", frames.shape, "an array of shape (T, H, W)")
    if times.shape != (len(frames),) or times.dtype.kind not in "iu":
        raise InputError("timestamps_us", f"{times.dtype} of shape {times.shape}", f"{len(frames)} integers")
    simulator = EventSimulator(threshold_on=threshold_on, threshold_off=threshold_off, max_events=max_events)
    for frame, t_us in zip(frames, times.tolist(), strict=True):
        simulator.step(frame, t_us)
    return simulator.finish()


def video_to_events(
    path: str | PathLike[str],
    *,
    threshold_on: float = 0.2,
    threshold_off: float = 0.2,
    max_frames: int = 10_000,
    max_events: int = 100_000_000,
    frames_per_second: float | None = None,
) -> Events:
    """A video file, or a folder of images, as events.

    A folder's times come from its info.txt (lines `name microseconds`) or, without one, from frames_per_second.
    Frames beyond max_frames are left out. Raises InputError where PyAV is missing, EventFormatError for a file it
    cannot decode.
    """
    source = Path(path)
    simulator = EventSimulator(threshold_on=threshold_on, threshold_off=threshold_off, max_events=max_events)
    frames = _folder_frames(source, frames_per_second) if source.is_dir() else _video_frames(source)
    for number, (frame, t_us) in enumerate(frames):
        if number >= max_frames:
            break
        simulator.step(frame, t_us)
    return simulator.finish()


def _log_intensity(frame: NDArray[Any]) -> NDArray[np.float64]:
    if frame.ndim != 2 or not frame.size or max(frame.shape) > MAX_SENSOR_SIDE:
        raise InputError("frames", frame.shape, f"grey frames of 1 to {MAX_SENSOR_SIDE} pixels a side")
    if frame.dtype == np.uint8:
        return _LOG_OF_BYTE[frame]
    if frame.dtype.kind != "f" or not bool((frame >= 0).all() and (frame <= 1).all()):
        raise InputError("frames", str(frame.dtype), "uint8, or floats from 0 to 1")
    return np.log(frame.astype(np.float64) + _EPS)


_LOG_OF_BYTE = np.log(np.arange(256) / 255.0 + _EPS)


def _av() -> Any:
    try:
        return importlib.import_module("av")
    except ImportError as error:
        raise InputError(
            "path", "a video or image file", "pip install 'cascade-runtime[video]' to decode it"
        ) from error


def _decoded(path: Path) -> Iterator[tuple[NDArray[np.uint8], int]]:
    """Grey frames and times (us) of one file, its first video stream."""
    av = _av()
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise EventFormatError(path.name, "streams", "no video stream")
            stream = container.streams.video[0]
            if max(stream.codec_context.width, stream.codec_context.height) > MAX_SENSOR_SIDE:
                raise EventFormatError(path.name, "size", f"frames of more than {MAX_SENSOR_SIDE} pixels a side")
            for frame in container.decode(stream):
                t_us = 0 if frame.pts is None else round(frame.pts * frame.time_base * 1_000_000)
                yield frame.to_ndarray(format="gray"), t_us
    except (av.error.FFmpegError, ValueError) as error:
        raise EventFormatError(path.name, "video", str(error)[:200]) from error


def _video_frames(path: Path) -> Iterator[tuple[NDArray[np.uint8], int]]:
    if not path.is_file():
        raise InputError("path", str(path), "an existing video file or folder of images")
    last = -MAX_TIME_US
    for frame, t_us in _decoded(path):
        if t_us > last:  # a repeated time stamp carries no motion
            yield frame, t_us
            last = t_us


def _folder_frames(folder: Path, frames_per_second: float | None) -> Iterator[tuple[NDArray[np.uint8], int]]:
    for image, t_us in _folder_times(folder, frames_per_second):
        for frame, _ in _decoded(image):
            yield frame, t_us
            break


def _folder_times(folder: Path, frames_per_second: float | None) -> list[tuple[Path, int]]:
    info = folder / "info.txt"
    if info.is_file():
        if info.stat().st_size > _MAX_INFO_BYTES:
            raise EventFormatError("info.txt", "size", f"more than {_MAX_INFO_BYTES} bytes")
        listed = []
        for number, line in enumerate(info.read_text("utf-8", "replace").splitlines()):
            match = re.fullmatch(r"\s*(\S+)\s+(\d{1,18})\s*", line)
            if not match:
                raise EventFormatError("info.txt", f"line {number + 1}", "not `name microseconds`")
            listed.append((folder / Path(match.group(1)).name, int(match.group(2))))
        return listed
    images = sorted(entry for entry in folder.iterdir() if entry.suffix.lower() in _IMAGE_SUFFIXES)
    if not images or not frames_per_second or not 0 < frames_per_second <= 1e6:
        raise InputError(
            "frames_per_second", frames_per_second, "a rate in 1/s for a folder of images without info.txt"
        )
    return [(image, round(number * 1e6 / frames_per_second)) for number, image in enumerate(images)]
