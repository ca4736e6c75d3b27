"""`.npy` and `.npz` recordings: EventGPT dicts, EventBench bins, structured arrays, (N, 4) tables, plain columns.

EventGPT .npy     0-d object array holding a dict p, t, x, y (t may be uint16, relative: it is cast before any
arithmetic) EventBench .npz   event_bins (object array of structured arrays) | event_data ((N, 4) or structured) |
columns x, y, t, p our own .npz      columns t, x, y, p and scalars width, height, t_offset_us

numpy.load is not used: it unpickles, and it allocates what a header announces before reading. Here a header's size
must equal the bytes that are there, and pickles go through object_pickle.py.
"""

from __future__ import annotations

import io
import tokenize
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascade_runtime.events.array import Events
from cascade_runtime.events.readers.columns import from_structured, from_table, pick_columns, to_events
from cascade_runtime.events.readers.object_pickle import load_arrays
from cascade_runtime.events.readers.source import Source

_MAX_ENTRIES = 64
_HEADER_ERRORS = (  # numpy parses a header as Python source
    ValueError,
    TypeError,
    SyntaxError,
    AttributeError,
    KeyError,
    RecursionError,
    tokenize.TokenError,
)
_NPZ_ENTRIES = ("event_bins", "event_data", "events", "width", "height", "t_offset_us")


def read_npy(source: Source) -> Events:
    """One array: see the module's list. Raises EventFormatError."""
    return _interpret(source, _parse_npy(source, source.data, source.name))


def read_npz(source: Source) -> Events:
    """An archive of arrays: see the module's list. Raises EventFormatError."""
    with zipfile.ZipFile(io.BytesIO(source.data)) as archive:
        entries = archive.infolist()
        if len(entries) > _MAX_ENTRIES:
            raise source.error("directory", f"{len(entries)} entries; at most {_MAX_ENTRIES}")
        source.check_expanded(sum(entry.file_size for entry in entries), "directory")
        arrays = {}
        for entry in entries:
            name = entry.filename.removesuffix(".npy")
            if entry.flag_bits & 1:
                raise source.error(f"entry {name[:40]!r}", "encrypted")
            with archive.open(entry) as member:
                data = member.read(entry.file_size)
                if len(data) != entry.file_size:
                    raise source.error(f"entry {name[:40]!r}", "shorter than the directory says")
            arrays[name] = _parse_npy(source, data, f"entry {name[:40]!r}")
    for name in ("event_bins", "event_data", "events"):
        if name in arrays:
            return _interpret(source, arrays[name])
    if len(arrays) == 1:
        return _interpret(source, next(iter(arrays.values())))
    return _interpret(source, arrays)


def _parse_npy(source: Source, data: bytes, where: str) -> object:
    """The array of a .npy image (or, for object arrays, what its pickle holds), without copying."""
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"npy version {version}")
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(stream)
        body = memoryview(data)[stream.tell() :]
        if dtype.hasobject:
            if not source.objects:
                raise source.error(where, "an array of objects, which is a pickle: send plain columns, or Arrow")
            return load_arrays(body)
        count = 1
        for side in shape:
            if side < 0:
                raise ValueError(f"shape {shape}")
            count *= side
        if dtype.itemsize == 0 or count * dtype.itemsize != len(body):
            raise ValueError(f"shape {shape} of {dtype} does not match {len(body)} bytes of data")
        return np.frombuffer(body, dtype).reshape(shape, order="F" if fortran else "C")
    except _HEADER_ERRORS as error:
        raise source.error(where, str(error)[:300]) from error


def _interpret(source: Source, value: object) -> Events:
    if isinstance(value, np.ndarray) and value.dtype.names:
        return from_structured(source, value.reshape(-1))
    if isinstance(value, np.ndarray):
        return from_table(source, value)
    if isinstance(value, Mapping):
        return _from_mapping(source, value)
    if isinstance(value, list):
        return _from_bins(source, value)
    raise source.error("contents", f"a {type(value).__name__}, not a recording")


def _from_mapping(source: Source, value: Mapping[str, object]) -> Events:
    names = pick_columns(source, [name for name in value if name not in _NPZ_ENTRIES])
    columns = [_numeric(source, name, value[name]) for name in names]
    if not {"width", "height", "t_offset_us"} <= value.keys():
        return to_events(source, columns)
    width, height, offset = (_scalar(source, name, value[name]) for name in ("width", "height", "t_offset_us"))
    source.check_events(len(columns[0]))
    return Events(*columns, width=width, height=height, t_offset_us=offset)


def _from_bins(source: Source, bins: list[object]) -> Events:
    """EventBench: consecutive windows, each a structured array (or a dict of columns), joined again."""
    parts: list[list[NDArray[Any]]] = []
    for part in bins:
        if isinstance(part, np.ndarray) and part.dtype.names:
            rows = part.reshape(-1)
            parts.append([rows[name] for name in pick_columns(source, list(part.dtype.names))])
        elif isinstance(part, Mapping):
            parts.append([_numeric(source, name, part[name]) for name in pick_columns(source, part)])
        else:
            raise source.error("field event_bins", f"a {type(part).__name__} where a structured array is expected")
        source.check_events(sum(len(columns[0]) for columns in parts))
    if not parts:
        raise source.error("field event_bins", "no bins")
    return to_events(source, [np.concatenate([columns[i] for columns in parts]) for i in range(4)])


def _numeric(source: Source, name: str, value: object) -> NDArray[Any]:
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iufb" or value.ndim != 1:
        found = f"{value.ndim}-d {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
        raise source.error(f"field {name[:40]}", f"{found} where a 1-d numeric array is expected")
    return value


def _scalar(source: Source, name: str, value: object) -> int:
    if isinstance(value, np.ndarray) and value.shape == () and value.dtype.kind in "iu":
        return int(value)
    raise source.error(f"field {name}", "not an integer scalar")
