"""`Wake`: a file descriptor that is readable while it is set, so that a thread in `poll` can be woken by another."""

from __future__ import annotations

import os


class Wake:
    """A flag one can `poll` for. An eventfd where the system has them, else a pipe. Not locked: the owner locks."""

    def __init__(self) -> None:
        self._set = self._closed = False
        if hasattr(os, "eventfd"):
            self._read = self._write = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:
            self._read, self._write = os.pipe()
            os.set_blocking(self._read, False)

    def set(self) -> None:
        """Make the descriptor readable."""
        if not self._set and not self._closed:
            self._set = True
            os.write(self._write, (1).to_bytes(8, "little"))

    def clear(self) -> None:
        """Make it unreadable again."""
        if self._set and not self._closed:
            self._set = False
            os.read(self._read, 8)

    def fileno(self) -> int:
        """What to poll for POLLIN."""
        return self._read

    def close(self) -> None:
        """Give the descriptors back. Twice is fine; so is forgetting it."""
        if self._closed:
            return
        self._closed = True
        os.close(self._read)
        if self._write != self._read:
            os.close(self._write)

    def __del__(self) -> None:
        self.close()
