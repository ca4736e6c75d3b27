"""A video that somebody sent, as simulated events: `jpeg_frames_to_events`, `video_bytes_to_events`.

The container is what the caller says, never what the bytes pretend to be: FFmpeg would recognise playlists too, and
open
what they name. Frames, pixels and events are counted while decoding, whatever the file announces. Needs PyAV
(pip install 'cascade-runtime[video]').
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascade_runtime.errors import EventFormatError, InputError
from cascade_runtime.events.array import Events
from cascade_runtime.events.video_to_events import EventSimulator

CONTAINERS = ("mov", "matroska", "avi")
"""FFmpeg's names of the containers that are read; "mov" is MP4 and QuickTime, "matroska" is WebM too."""
_JPEG = b"\xff\xd8\xff"
_Timed = tuple[NDArray[np.uint8], int]


@dataclass(frozen=True, kw_only=True)
class VideoLimits:
    """What one video may take, frames together where it does not say otherwise."""

    max_frames: int = 300
    max_frame_pixels: int = 1920 * 1088
    max_pixels: int = 100_000_000
    max_events: int = 20_000_000


def jpeg_frames_to_events(
    frames: Sequence[bytes], frames_per_second: float, *, name: str, limits: VideoLimits | None = None
) -> Events:
    """JPEG images at a steady rate as simulated events. `name` is what errors call them.

    Raises EventFormatError for images that are none, of several sizes or too many, InputError where PyAV is missing.
    """
    bounds = limits or VideoLimits()
    if len(frames) > bounds.max_frames:
        raise EventFormatError(name, "frames", f"{len(frames)} frames; limit {bounds.max_frames}")
    timed = (
        (_jpeg(image, f"frame {number}", name, bounds), round(number * 1e6 / frames_per_second))
        for number, image in enumerate(frames)
    )
    return _simulate(timed, name, bounds)


def video_bytes_to_events(data: bytes, container: str, *, name: str, limits: VideoLimits | None = None) -> Events:
    """The first video stream of a file of one of CONTAINERS as simulated events; see `jpeg_frames_to_events`."""
    if container not in CONTAINERS:
        raise InputError("container", container, ", ".join(CONTAINERS))
    bounds = limits or VideoLimits()
    return _simulate(_frames(data, container, name, bounds), name, bounds)


def _simulate(frames: Iterable[_Timed], name: str, limits: VideoLimits) -> Events:
    simulator = EventSimulator(max_events=limits.max_events)
    pixels, last = 0, None
    try:
        for number, (frame, t_us) in enumerate(frames):
            pixels += frame.size
            if number >= limits.max_frames or pixels > limits.max_pixels:
                allowed = f"{limits.max_frames} frames and {limits.max_pixels} pixels in all"
                raise EventFormatError(name, f"frame {number}", f"more than {allowed}")
            if last is None or t_us > last:  # a repeated time stamp carries no motion
                simulator.step(frame, t_us)
                last = t_us
        return simulator.finish()
    except EventFormatError:
        raise
    except InputError as error:
        raise EventFormatError(name, error.field, f"{error.value!r} where {error.allowed} is allowed") from error


def _frames(data: bytes, container: str, name: str, limits: VideoLimits) -> Iterator[_Timed]:
    av = _av(name)
    try:
        with av.open(io.BytesIO(data), format=container) as file:
            if not file.streams.video:
                raise EventFormatError(name, "streams", "no video stream")
            stream = file.streams.video[0]
            stream.codec_context.options = {"max_pixels": str(limits.max_frame_pixels)}
            for frame in file.decode(stream):
                t_us = 0 if frame.pts is None else round(frame.pts * frame.time_base * 1_000_000)
                yield _grey(frame, name, limits), t_us
    except (av.error.FFmpegError, ValueError, OverflowError, MemoryError) as error:
        raise EventFormatError(name, "video", str(error)[:200]) from error


def _jpeg(image: bytes, where: str, name: str, limits: VideoLimits) -> NDArray[np.uint8]:
    if not image.startswith(_JPEG):
        raise EventFormatError(name, where, "no JPEG image")
    av = _av(name)
    try:
        codec = av.CodecContext.create("mjpeg", "r")
        codec.options = {"max_pixels": str(limits.max_frame_pixels)}
        codec.thread_count = 1
        frames = [*codec.decode(av.Packet(image)), *codec.decode(None)]
        if len(frames) != 1:
            raise EventFormatError(name, where, f"{len(frames)} images in it")
        return _grey(frames[0], name, limits)
    except (av.error.FFmpegError, ValueError, OverflowError, MemoryError) as error:
        raise EventFormatError(name, where, str(error)[:200]) from error


def _grey(frame: Any, name: str, limits: VideoLimits) -> NDArray[np.uint8]:
    if frame.width * frame.height > limits.max_frame_pixels:
        size = f"{frame.width}x{frame.height}"
        raise EventFormatError(name, "size", f"frames of {size}; limit {limits.max_frame_pixels} pixels")
    return frame.to_ndarray(format="gray")


def _av(name: str) -> Any:
    try:
        return importlib.import_module("av")
    except ImportError as error:
        raise InputError(name, "a video", "events: PyAV is not installed here (cascade-runtime[video])") from error
