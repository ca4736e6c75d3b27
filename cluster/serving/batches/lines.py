"""`Lines`: a file of lines that is only ever appended to, and that holds whole lines only, whatever stops a writing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cascade_runtime.batch.durable import storage_errors


class Lines:
    """Half a line at the file's end, of a process that died, is cut off first. Raises what `storage_errors` does."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with storage_errors(path):
            path.touch(0o600)
            self._file = path.open("r+b", buffering=0)  # what the disk had no room for is nowhere else
            self._size = sum(len(line) for line in path.open("rb") if line.endswith(b"\n"))
            self._cut()

    def __iter__(self) -> Iterator[bytes]:
        with self._path.open("rb") as file:
            yield from file

    def add(self, line: bytes) -> None:
        """Append a line and its end. On an error (`CapacityError`: the disk is full) the file is as it was."""
        left = memoryview(line + b"\n")
        with storage_errors(self._path):
            try:
                while left:
                    left = left[self._file.write(left) :]
            except OSError:
                self._cut()
                raise
        self._size += len(line) + 1

    def close(self) -> None:
        """Twice is fine."""
        self._file.close()

    def _cut(self) -> None:
        self._file.truncate(self._size)
        self._file.seek(self._size)
