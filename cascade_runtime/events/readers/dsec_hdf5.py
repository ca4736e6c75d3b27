"""HDF5 recordings (`.h5`, `.hdf5`): DSEC's events/{t,x,y,p} with t_offset, and (N, 4) tables as in MVSEC.

`pip install cascade-runtime[dsec]` (h5py, and hdf5plugin for DSEC's Blosc). An HDF5 file can point at other files and
announce any shape, so links out of the file, virtual and externally stored datasets are refused, and shapes are
checked before reading. DSEC: absolute time is t + t_offset (https://github.com/uzh-rpg/DSEC, eventslicer.py).
"""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascade_runtime.errors import InputError
from cascade_runtime.events.array import Events
from cascade_runtime.events.readers.columns import from_table, pick_columns, to_events
from cascade_runtime.events.readers.source import Source

_GROUPS = ("events", "davis/left/events", "CD/events", "")
_READ_ERRORS = (OSError, ValueError, KeyError, RuntimeError, TypeError, OverflowError, MemoryError, AttributeError)


def read_hdf5(source: Source) -> Events:
    """Raises InputError where h5py or hdf5plugin is missing, EventFormatError for everything wrong in the file."""
    try:
        h5py = importlib.import_module("h5py")
        importlib.import_module("hdf5plugin")  # registers its filters
    except ImportError as error:
        raise InputError("format", source.path.suffix, "pip install 'cascade-runtime[dsec]' to read it") from error
    try:
        with h5py.File(source.path, "r", locking=False) as file:
            return _read(source, h5py, file)
    except _READ_ERRORS as error:
        raise source.error("hdf5", f"{type(error).__name__}: {str(error)[:250]}") from error


def _read(source: Source, h5py: Any, file: Any) -> Events:
    for path in _GROUPS:
        group = _inside(source, h5py, file, path) if path else file
        if group is None:
            continue
        if isinstance(group, h5py.Dataset):
            return from_table(source, _load(source, group))
        if not path and not any(_is_dataset(source, h5py, file, name) for name in list(file)[:64]):
            continue
        names = pick_columns(source, list(group)[:256])
        columns = []
        for name in names:
            dataset = _inside(source, h5py, group, name)
            if not isinstance(dataset, h5py.Dataset):
                raise source.error(f"field {name}", "not a dataset")
            columns.append(_load(source, dataset))
        return to_events(source, [columns[0].astype(np.int64) + _offset(source, h5py, file), *columns[1:]])
    raise source.error("hdf5", f"no events under any of {', '.join(_GROUPS[:-1])}")


def _inside(source: Source, h5py: Any, group: Any, path: str) -> Any:
    """The object at `path`, walking hard links only; None where it is absent."""
    for part in path.split("/"):
        if not isinstance(group, h5py.Group):
            return None
        link = group.get(part, getlink=True)
        if link is None:
            return None
        if not isinstance(link, h5py.HardLink):
            raise source.error(f"link {part[:40]}", f"a {type(link).__name__}; only objects inside the file are read")
        group = group[part]
    return group


def _is_dataset(source: Source, h5py: Any, group: Any, name: str) -> bool:
    return isinstance(_inside(source, h5py, group, name), h5py.Dataset)


def _load(source: Source, dataset: Any) -> NDArray[Any]:
    if dataset.is_virtual or dataset.external:
        raise source.error(f"field {dataset.name}", "a virtual or externally stored dataset")
    if dataset.dtype.kind not in "iufb" or len(dataset.shape) not in (1, 2):
        raise source.error(f"field {dataset.name}", f"{dataset.dtype} of shape {dataset.shape}")
    source.check_events(dataset.shape[0])
    count = math.prod(dataset.shape) * dataset.dtype.itemsize
    source.check_expanded(count, f"field {dataset.name}")
    chunk = math.prod(dataset.chunks) * dataset.dtype.itemsize if dataset.chunks else 0
    source.check_expanded(chunk, f"chunks of {dataset.name}")
    return dataset[()]


def _offset(source: Source, h5py: Any, file: Any) -> int:
    found = _inside(source, h5py, file, "t_offset")
    if found is None:
        return 0
    if not isinstance(found, h5py.Dataset) or found.shape != () or found.dtype.kind not in "iu":
        raise source.error("field t_offset", "not an integer scalar")
    if found.is_virtual or found.external or not 0 <= int(found[()]) < 2**62:
        raise source.error("field t_offset", "outside the file, negative or beyond 2**62 us")
    return int(found[()])
