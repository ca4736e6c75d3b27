"""`FileStore`: the files of a server in one private folder, which several replicas of one machine may share.

    FOLDER/ID           what the file holds          FOLDER/ID.json      who left it, its name, size and age

A file is named by an id that the store makes up; the name that its owner gave it is told again, and never a path. A
file is there once its JSON is, so that what was half written when a process died is never seen, and is swept away. All
methods block, for as long as a disk takes.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from cascade_runtime.batch.durable import storage_errors, write_durably
from cascade_runtime.errors import CapacityError, InputError

_ID = re.compile(r"file-[0-9a-f]{24}")
_PER_CALLER = 1000
_CHECKED_S = 3600.0  # nothing is looked through for old files more often than that
_ABANDONED_S = 86_400.0 * 2  # what has no JSON by then never will: a batch ends within a day
_COPIED_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """One file. created, expires: Unix seconds. name: what its owner calls it."""

    id: str
    owner: str
    name: str
    purpose: str
    bytes: int
    created: int
    expires: int

    def to_dict(self) -> dict[str, Any]:
        """OpenAI's file object."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.bytes,
            "created_at": self.created,
            "expires_at": self.expires,
            "filename": self.name,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }


class FileStore:
    """folder: made if it is not there, for nobody else to read; None is one of its own, which goes with `close`.
    max_bytes: of all files together; max_file_bytes: of one; max_age_s: after which a file is removed.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        max_file_bytes: int,
        max_bytes: int,
        max_age_s: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._temporary = folder is None
        folder = Path(tempfile.mkdtemp(prefix="cascade-files-")) if folder is None else folder
        self.folder, self.max_file_bytes, self.max_bytes, self.max_age_s = folder, max_file_bytes, max_bytes, max_age_s
        self._clock = clock
        self._lock = threading.Lock()
        self._swept = -_CHECKED_S
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.chmod(0o700)

    def add(self, source: BinaryIO, *, owner: str, name: str, purpose: str, age_s: int | None = None) -> StoredFile:
        """Copy a file in. Raises `InputError` for one that is empty or too large, `CapacityError` where all is full."""
        self.sweep()
        self.check_room(owner)
        made = self.new_id()
        try:
            with storage_errors(self.folder), self.path(made).open("xb") as file:
                left = min(self.max_file_bytes, max(0, self.max_bytes - self.used_bytes()))
                while block := source.read(_COPIED_BYTES):
                    left -= len(block)
                    if left < 0:
                        raise self._no_room(file.tell() + len(block))
                    file.write(block)
                if not file.tell():
                    raise InputError("file", "0 bytes", "a file with something in it")
            return self.finish(made, owner=owner, name=name, purpose=purpose, age_s=age_s)
        except BaseException:
            self.path(made).unlink(missing_ok=True)
            raise

    def finish(self, made: str, *, owner: str, name: str, purpose: str, age_s: int | None = None) -> StoredFile:
        """Let a file that was written to `path(made)` be seen from now on."""
        now = int(self._clock())
        with storage_errors(self.folder), self.path(made).open("rb") as file:
            os.fsync(file.fileno())
            size = os.fstat(file.fileno()).st_size
        stored = StoredFile(
            id=made,
            owner=owner,
            name=name,
            purpose=purpose,
            bytes=size,
            created=now,
            expires=now + min(self.max_age_s, age_s or self.max_age_s),
        )
        write_durably(self._facts(made), lambda file: file.write(json.dumps(asdict(stored)).encode()))
        return stored

    def find(self, owner: str, id: str) -> StoredFile | None:
        """The file of this owner, unless it is too old."""
        if not _ID.fullmatch(id):
            return None
        stored = self._read(self._facts(id))
        return stored if stored is not None and stored.owner == owner and stored.expires > self._clock() else None

    def of(self, owner: str) -> list[StoredFile]:
        """The files of this owner, the newest first."""
        found = [file for file in self._all() if file.owner == owner and file.expires > self._clock()]
        return sorted(found, key=lambda file: (file.created, file.id), reverse=True)

    def delete(self, owner: str, id: str) -> bool:
        """Remove a file of this owner; whether there was one. Who reads it reads on."""
        if self.find(owner, id) is None:
            return False
        self._remove(id)
        return True

    def path(self, id: str) -> Path:
        """Where the content of a file lies."""
        assert _ID.fullmatch(id), id  # never a name of somebody's
        return self.folder / id

    def new_id(self) -> str:
        """An id that is not in use."""
        return f"file-{secrets.token_hex(12)}"

    def used_bytes(self) -> int:
        """Of all files, those that are being written as well."""
        return sum(_size(path) for path in self._contents())

    def check_room(self, owner: str) -> None:
        """Raises `CapacityError` where one file more is too many."""
        if len(self.of(owner)) >= _PER_CALLER:
            raise CapacityError(f"{_PER_CALLER} files of this caller are stored; delete some")
        if self.used_bytes() >= self.max_bytes:
            raise CapacityError(f"{self.max_bytes} bytes are stored; some must be deleted first")

    def sweep(self) -> None:
        """Remove what is too old, at most once an hour."""
        with self._lock:
            now = self._clock()
            if now - self._swept < _CHECKED_S:
                return
            self._swept = now
        for file in self._all():
            if file.expires <= now:
                self._remove(file.id)
        for path in self._contents():
            if not self._facts(path.name).exists() and _written(path) < now - _ABANDONED_S:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove a folder of its own."""
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _all(self) -> Iterator[StoredFile]:
        for path in self.folder.glob("file-*.json"):
            if (stored := self._read(path)) is not None:
                yield stored

    def _contents(self) -> Sequence[Path]:
        return [path for path in self.folder.glob("file-*") if _ID.fullmatch(path.name)]

    def _facts(self, id: str) -> Path:
        return self.folder / f"{id}.json"

    def _read(self, path: Path) -> StoredFile | None:
        try:
            return StoredFile(**json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError):  # removed meanwhile, or not one of ours
            return None

    def _remove(self, id: str) -> None:
        self._facts(id).unlink(missing_ok=True)
        self.path(id).unlink(missing_ok=True)

    def _no_room(self, size: int) -> InputError | CapacityError:
        if size > self.max_file_bytes:
            return InputError("file", f"{size} bytes and more", f"at most {self.max_file_bytes} bytes")
        return CapacityError(f"{self.max_bytes} bytes may be stored; some must be deleted first")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return float("inf")
