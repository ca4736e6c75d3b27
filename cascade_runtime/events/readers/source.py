"""A recording's file, opened within bounds: `Source`, `ReadLimits`; and one that came as bytes: `Received`."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from cascade_runtime.errors import ConfigError, EventFormatError, InputError


@dataclass(frozen=True, kw_only=True)
class ReadLimits:
    """What a reader may use for one file, whatever the file announces. All are checked before memory is taken."""

    max_file_bytes: int = 2 * 2**30
    max_expanded_bytes: int = 4 * 2**30
    """Bytes once decompressed, over all parts of the file."""
    max_events: int = 100_000_000

    def __post_init__(self) -> None:
        for name in ("max_file_bytes", "max_expanded_bytes", "max_events"):
            if getattr(self, name) < 1:
                raise ConfigError(name, getattr(self, name), "an integer of at least 1")


@dataclass(frozen=True)
class Source:
    """One regular file; `data` is read at most once and never beyond the limits."""

    path: Path
    limits: ReadLimits = field(default_factory=ReadLimits)
    sensor: tuple[int, int] | None = None
    """(width, height) as the caller knows it; overrides what the file says or suggests."""
    objects: bool = True
    """Whether arrays of objects, which lie in the file as pickles, are read (by object_pickle.py's whitelist)."""

    @property
    def name(self) -> str:
        return self.path.name

    def check(self) -> None:
        """Raises InputError unless the path is a regular file within `max_file_bytes`."""
        try:
            status = self.path.stat()
        except (OSError, ValueError) as error:
            raise InputError("path", str(self.path), f"an existing file ({error})") from error
        if not stat.S_ISREG(status.st_mode):
            raise InputError("path", str(self.path), "a regular file")
        if status.st_size > self.limits.max_file_bytes:
            raise self.error("size", f"{status.st_size} bytes; limit max_file_bytes={self.limits.max_file_bytes}")
        if not status.st_size:
            raise self.error("offset 0", "the file is empty")

    @cached_property
    def data(self) -> bytes:
        with self.path.open("rb") as file:
            return file.read(min(os.fstat(file.fileno()).st_size, self.limits.max_file_bytes))

    def head(self, count: int) -> bytes:
        with self.path.open("rb") as file:
            return file.read(count)

    def error(self, where: str, problem: str) -> EventFormatError:
        return EventFormatError(self.name, where, problem)

    def check_events(self, count: int) -> None:
        if count > self.limits.max_events:
            raise self.error("events", f"{count} events; limit max_events={self.limits.max_events}")

    def check_expanded(self, count: int, where: str) -> None:
        if count < 0 or count > self.limits.max_expanded_bytes:
            limit = self.limits.max_expanded_bytes
            raise self.error(where, f"{count} bytes once decompressed; limit max_expanded_bytes={limit}")


@dataclass(frozen=True, kw_only=True)
class Received(Source):
    """A recording that came as bytes from somewhere else; `path` is only what errors call it."""

    body: bytes
    objects: bool = False

    def check(self) -> None:
        """Raises EventFormatError unless it is within `max_file_bytes` and not empty."""
        if len(self.body) > self.limits.max_file_bytes:
            raise self.error("size", f"{len(self.body)} bytes; limit max_file_bytes={self.limits.max_file_bytes}")
        if not self.body:
            raise self.error("offset 0", "no bytes")

    @cached_property
    def data(self) -> bytes:
        return self.body

    def head(self, count: int) -> bytes:
        return self.body[:count]
