"""`read_events`: which reader a file needs, found by content first and suffix second. `read_event_bytes`: the same for
bytes that somebody sent.

Every failure inside a reader comes out as an EventFormatError that names the file and the offset, entry or field.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable
from os import PathLike
from pathlib import Path, PurePath

import pyarrow as pa

from cascade_runtime.errors import EventFormatError, InputError
from cascade_runtime.events.array import Events
from cascade_runtime.events.readers.aedat4 import read_aedat4
from cascade_runtime.events.readers.arrow_files import read_arrow, read_parquet
from cascade_runtime.events.readers.dsec_hdf5 import read_hdf5
from cascade_runtime.events.readers.eventcv_files import read_with_eventcv
from cascade_runtime.events.readers.evt2 import read_evt2
from cascade_runtime.events.readers.evt3 import read_evt3
from cascade_runtime.events.readers.forty_bit import read_forty_bit
from cascade_runtime.events.readers.numpy_files import read_npy, read_npz
from cascade_runtime.events.readers.raw_header import read_raw_header
from cascade_runtime.events.readers.rosbag import read_rosbag
from cascade_runtime.events.readers.source import ReadLimits, Received, Source
from cascade_runtime.events.readers.text import read_text

FORMATS: dict[str, Callable[[Source], Events]] = {
    "npy": read_npy,
    "npz": read_npz,
    "arrow": read_arrow,
    "parquet": read_parquet,
    "text": read_text,
    "bin": read_forty_bit,
    "evt2": read_evt2,
    "evt3": read_evt3,
    "aedat4": read_aedat4,
    "aedat2": read_with_eventcv,
    "dat": read_with_eventcv,
    "rosbag": read_rosbag,
    "hdf5": read_hdf5,
}
SENT_FORMATS = ("npz", "npy", "arrow", "parquet", "text", "bin", "evt2", "evt3", "aedat4", "rosbag")
"""Formats that may come as bytes: the others need a file, and libraries that open what a file names."""
_BY_CONTENT = (
    (b"\x93NUMPY", "npy"),
    (b"PK\x03\x04", "npz"),
    (b"ARROW1", "arrow"),
    (b"PAR1", "parquet"),
    (b"\x89HDF\r\n", "hdf5"),
    (b"#ROSBAG", "rosbag"),
    (b"#!AER-DAT4", "aedat4"),
    (b"#!AER-DAT2", "aedat2"),
)
_BY_SUFFIX = {
    ".npy": "npy",
    ".npz": "npz",
    ".arrow": "arrow",
    ".arrows": "arrow",
    ".ipc": "arrow",
    ".feather": "arrow",
    ".parquet": "parquet",
    ".txt": "text",
    ".csv": "text",
    ".bin": "bin",
    ".aedat4": "aedat4",
    ".aedat": "aedat2",
    ".dat": "dat",
    ".bag": "rosbag",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
}
_MALFORMED = (
    ValueError,
    OSError,
    EOFError,
    MemoryError,
    OverflowError,
    NotImplementedError,
    RuntimeError,  # zipfile: encrypted entries
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    pa.ArrowException,
)


def read_events(
    path: str | PathLike[str],
    *,
    limits: ReadLimits | None = None,
    format: str | None = None,
    sensor: tuple[int, int] | None = None,
) -> Events:
    """The recording in a file, whole; `t` starts at 0 and `t_offset_us` is the file's time of the first event.

    limits: what it may take (default ReadLimits()); format: a key of FORMATS instead of detection; sensor: (width,
    height) instead of what the file says or suggests. Raises EventFormatError for a bad file and InputError for a
    missing file, an unknown format or an extra that is not installed.
    """
    return _read(Source(Path(path), limits or ReadLimits(), sensor), format, tuple(FORMATS))


def read_event_bytes(
    data: bytes,
    *,
    name: str,
    limits: ReadLimits | None = None,
    format: str | None = None,
    sensor: tuple[int, int] | None = None,
) -> Events:
    """Like `read_events` for the bytes of a recording in one of SENT_FORMATS, of arrays of objects none; `name` is what
    errors call it.
    """
    received = Received(path=Path(name), limits=limits or ReadLimits(), sensor=sensor, body=data)
    return _read(received, format, SENT_FORMATS)


def format_of(name: str) -> str | None:
    """The format that a file's name promises, if it is one of SENT_FORMATS."""
    found = _BY_SUFFIX.get(PurePath(name).suffix.lower())
    return found if found in SENT_FORMATS else None


def _read(source: Source, format: str | None, allowed: tuple[str, ...]) -> Events:
    source.check()
    if format is not None and format not in allowed:
        raise InputError("format", format, ", ".join(allowed))
    name = format or _detect(source)
    if name not in allowed:
        raise source.error(f"as {name}", f"not read from bytes; read: {', '.join(allowed)}")
    try:
        return FORMATS[name](source)
    except EventFormatError:
        raise
    except InputError as error:
        if error.field in ("format", "width", "height") and (error.field == "format" or source.sensor):
            raise  # the caller's own doing
        raise source.error(f"field {error.field}", f"{error.value!r} where {error.allowed} is allowed") from error
    except _MALFORMED as error:
        raise source.error(f"as {name}", f"{type(error).__name__}: {str(error)[:300]}") from error


def _detect(source: Source) -> str:
    head = source.head(4096)
    for magic, name in _BY_CONTENT:
        if head.startswith(magic):
            return name
    suffix = source.path.suffix.lower()
    if suffix in _BY_SUFFIX:
        return _BY_SUFFIX[suffix]
    if head.startswith(b"% ") or suffix == ".raw":
        encoding = read_raw_header(source).encoding
        names = {"2.0": "evt2", "3.0": "evt3"}
        if encoding not in names:
            raise source.error("header", f"raw encoding {encoding or 'unstated'}; read: EVT 2.0, EVT 3.0")
        return names[encoding]
    if head and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        return "text"
    raise source.error(
        "offset 0", f"neither content nor suffix {suffix or '(none)'} is known; read: {', '.join(FORMATS)}"
    )
