"""A recording as a request names it -> `Media`: data URLs, files that its caller has uploaded, and files below a
directory that the operator has named.

Nothing is fetched. The media type decides how the bytes are read; the bytes themselves decide only where it says
nothing ("application/octet-stream"), and then among event formats. Sizes are checked before the bytes are looked at.
"""

from __future__ import annotations

import base64
import binascii
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from cascade_runtime.config.checks import integer, number
from cascade_runtime.errors import EventFormatError, InputError
from cascade_runtime.events import Events, ReadLimits
from cascade_runtime.events.array import MAX_SENSOR_SIDE
from cascade_runtime.events.readers import SENT_FORMATS, format_of, read_event_bytes
from cascade_runtime.events.video_bytes import VideoLimits, jpeg_frames_to_events, video_bytes_to_events
from cluster.serving.files.store import FileStore, StoredFile

_EVENT_TYPES: dict[str, str | None] = {
    "application/vnd.apache.arrow.stream": "arrow",
    "application/vnd.apache.arrow.file": "arrow",
    "application/vnd.apache.parquet": "parquet",
    "application/x-npz": "npz",
    "application/x-npy": "npy",
    "text/csv": "text",
    "text/plain": "text",
    "application/octet-stream": None,
}
_CONTAINERS = {
    "video/mp4": "mov",
    "video/quicktime": "mov",
    "video/webm": "matroska",
    "video/x-matroska": "matroska",
    "video/x-msvideo": "avi",
}
_JPEG_FRAMES = "video/jpeg"
_TYPE_OF_SUFFIX = {
    ".mp4": "video/mp4",
    ".mov": "video/mp4",
    ".webm": "video/webm",
    ".mkv": "video/webm",
    ".avi": "video/x-msvideo",
}
_FRAMES_PER_SECOND = 30.0
_KEYS = ("url", "file_id", "format", "width", "height", "fps")
_RECORDINGS = ("user_data", "vision")


@dataclass(frozen=True)
class Uploads:
    """What one caller has left in a store."""

    files: FileStore
    caller: str

    def recording(self, id: str) -> StoredFile | None:
        """The recording of this id, if it is one of theirs."""
        stored = self.files.find(self.caller, id)
        return stored if stored is not None and stored.purpose in _RECORDINGS else None


@dataclass(frozen=True, kw_only=True)
class MediaLimits:
    """What one recording may take. directory: `file:` URLs are read below it; None refuses all of them. uploads: the
    files that a request may name by their id.
    """

    max_bytes: int = 48 * 2**20
    max_expanded_bytes: int = 512 * 2**20
    max_events: int = 20_000_000
    video: VideoLimits = field(default_factory=VideoLimits)
    directory: Path | None = None
    uploads: Uploads | None = None


@dataclass(frozen=True)
class SentBytes:
    """What stands for a data URL where bytes need no text around them (gRPC): its media type and its data."""

    media_type: str
    data: bytes


@dataclass(frozen=True)
class Media:
    """A recording, and whether its events were simulated from a video."""

    events: Events
    simulated: bool


def read_media(source: object, where: str, limits: MediaLimits) -> Media:
    """The recording of one content part: {"url" or "file_id", "format", "width", "height", "fps"}; the last four may be
    missing.

    Raises `InputError` naming a field below `where`, and `EventFormatError` for a recording that cannot be read.
    """
    if not isinstance(source, Mapping):
        raise InputError(where, _kind(source), 'an object with a "url" or a "file_id"')
    for key in source:
        if key not in _KEYS:
            raise InputError(f"{where}.{str(key)[:40]}", "a key", f"only the keys {', '.join(_KEYS)}")
    format, sensor, fps = _format(source, where), _sensor(source, where), source.get("fps")
    if fps is not None:
        number(InputError, f"{where}.fps", fps, 0.1, 10_000)
    media_type, payload, promised = _located(source, where, limits)
    if limits.uploads and source.get("file_id") is not None:
        limits = replace(limits, max_bytes=min(limits.uploads.files.max_file_bytes, limits.max_expanded_bytes))
    if media_type in _EVENT_TYPES:
        data = _bytes(payload, f"{where}.url", limits.max_bytes)
        bounds = ReadLimits(
            max_file_bytes=limits.max_bytes,
            max_expanded_bytes=limits.max_expanded_bytes,
            max_events=limits.max_events,
        )
        said = format or _EVENT_TYPES[media_type] or promised
        return Media(read_event_bytes(data, name=where, limits=bounds, format=said, sensor=sensor), False)
    return Media(_video(media_type, payload, fps, where, limits), True)


def _located(source: Mapping[Any, Any], where: str, limits: MediaLimits) -> tuple[str, str | bytes | Path, str | None]:
    """The media type of a recording, its base64 text, bytes or file, and the format that its name promises."""
    url, file_id = source.get("url"), source.get("file_id")
    if file_id is not None:
        stored = limits.uploads.recording(file_id) if limits.uploads and isinstance(file_id, str) else None
        if stored is None or limits.uploads is None or url is not None:
            allowed = f"the id of an uploaded file of purpose {' or '.join(_RECORDINGS)}, and no url"
            raise InputError(f"{where}.file_id", _kind(file_id), allowed)
        return _type_of(stored.name), limits.uploads.files.path(stored.id), format_of(stored.name)
    if isinstance(url, SentBytes):
        return url.media_type.strip().lower(), url.data, None
    if not isinstance(url, str):
        raise InputError(f"{where}.url", _kind(url), "a data URL")
    scheme = url[:16].partition(":")[0].lower()
    if scheme == "data":
        return *_split(url, f"{where}.url"), None
    if scheme == "file" and limits.directory is not None:
        path = _below(limits.directory, url, f"{where}.url")
        return _type_of(path.name), path, format_of(path.name)
    raise InputError(f"{where}.url", url[:60], "a data URL (data:...;base64,...): this server fetches nothing")


def _type_of(name: str) -> str:
    """The media type that a file's name promises; of events their content decides."""
    return _TYPE_OF_SUFFIX.get(name[name.rfind(".") :].lower(), "application/octet-stream")


def _video(media_type: str, payload: str | bytes | Path, fps: Any, where: str, limits: MediaLimits) -> Events:
    if media_type == _JPEG_FRAMES and isinstance(payload, str):
        if payload.count(",") >= limits.video.max_frames:
            raise EventFormatError(where, "frames", f"more than {limits.video.max_frames} frames")
        frames = [_bytes(part, f"{where}.url", limits.max_bytes) for part in payload.split(",")]
        return jpeg_frames_to_events(frames, fps or _FRAMES_PER_SECOND, name=where, limits=limits.video)
    if media_type not in _CONTAINERS:
        known = ", ".join([*_EVENT_TYPES, _JPEG_FRAMES, *_CONTAINERS])
        raise InputError(f"{where}.url", media_type[:60], f"one of the media types {known}")
    data = _bytes(payload, f"{where}.url", limits.max_bytes)
    return video_bytes_to_events(data, _CONTAINERS[media_type], name=where, limits=limits.video)


def _split(url: str, where: str) -> tuple[str, str]:
    """Media type and base64 text of a data URL (RFC 2397)."""
    head, comma, payload = url[len("data:") :].partition(",")
    media_type, *parameters = [part.strip().lower() for part in head[:1000].split(";")]
    if not comma or "base64" not in parameters:
        raise InputError(where, url[:60], "data:MEDIA/TYPE;base64,DATA")
    return media_type or "application/octet-stream", payload


def _bytes(payload: str | bytes | Path, where: str, limit: int) -> bytes:
    if isinstance(payload, Path):
        return _file(payload, where, limit)
    if isinstance(payload, bytes):
        if len(payload) > limit:
            raise InputError(where, f"{len(payload)} bytes", f"at most {limit} bytes")
        return payload
    if len(payload) * 3 // 4 > limit + 2:
        raise InputError(where, f"{len(payload)} characters", f"at most {limit} bytes in base64")
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(where, payload[:20], f"base64 ({error})") from error


def _below(directory: Path, url: str, where: str) -> Path:
    """The path of a file URL, if it lies below the directory once every link is followed."""
    try:
        parts = urlsplit(url)
        real, root = Path(os.path.realpath(unquote(parts.path))), Path(os.path.realpath(directory))
        inside = not parts.netloc and real.is_relative_to(root) and real.is_file()
    except (OSError, ValueError) as error:
        raise InputError(where, url[:60], "a file below the allowed directory") from error
    if not inside:
        raise InputError(where, url[:60], "a file below the allowed directory")
    return real


def _file(path: Path, where: str, limit: int) -> bytes:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
                raise InputError(where, path.name, f"a regular file of at most {limit} bytes")
            return file.read(limit)
    except OSError as error:
        raise InputError(where, path.name, "a readable file below the allowed directory") from error


def _format(source: Mapping[Any, Any], where: str) -> str | None:
    format = source.get("format")
    if format is not None and (not isinstance(format, str) or format not in SENT_FORMATS):
        raise InputError(f"{where}.format", _kind(format), ", ".join(SENT_FORMATS))
    return format


def _sensor(source: Mapping[Any, Any], where: str) -> tuple[int, int] | None:
    width, height = source.get("width"), source.get("height")
    if width is None and height is None:
        return None
    for name, side in (("width", width), ("height", height)):
        integer(InputError, f"{where}.{name}", side, 1, MAX_SENSOR_SIDE)
    assert isinstance(width, int) and isinstance(height, int)  # checked just now
    return width, height


def _kind(value: object) -> object:
    """A value as an error may show it: short, and of anything large only what it is."""
    return value[:40] if isinstance(value, str) else type(value).__name__ if value is not None else None
