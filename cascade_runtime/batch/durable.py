"""Files that are there whole or not at all, whatever stops the process or the machine: `write_durably`."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from cascade_runtime.errors import CapacityError, CascadeError

HALF_WRITTEN = ".half-written"


def write_durably(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a file beside `path`, then put it in its place, on the disk before this returns.

    Raises `CapacityError` where the disk is full and `CascadeError` for other trouble; `path` is as it was then.
    """
    half = path.with_name(path.name + HALF_WRITTEN)
    with storage_errors(path):
        try:
            with half.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(half, path)
            _sync_folder(path.parent)
        except (OSError, CascadeError):
            half.unlink(missing_ok=True)  # a full disk gets its room back
            raise


def remove(path: Path) -> None:
    """Remove a file, if it is there, for good."""
    with storage_errors(path):
        path.unlink(missing_ok=True)
        _sync_folder(path.parent)


@contextmanager
def storage_errors(path: Path) -> Generator[None]:
    """What goes wrong with the disk, as one of our errors."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise CapacityError(
                f"{path}: {error.strerror}; what was committed is safe, make room and run the same command again"
            ) from error
        raise CascadeError(f"{path}: {error.strerror or error}") from error


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
