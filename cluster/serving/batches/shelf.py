"""`BatchShelf`: the batches of a server, a JSON file each in a private folder.

    FOLDER/ID.json     the batch           FOLDER/ID.lock     held by the process that runs it, as long as it lives
    FOLDER/ID.cancel   somebody wants it to end

Only who holds the lock writes the JSON again, so that replicas which share the folder never undo one another's work.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from cascade_runtime.batch.durable import storage_errors, write_durably
from cluster.serving.batches.batch import Batch

_ID = re.compile(r"batch_[0-9a-f]{24}")


class BatchShelf:
    """folder: made if it is not there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    @staticmethod
    def new_id() -> str:
        """An id that is not in use."""
        return f"batch_{secrets.token_hex(12)}"

    def save(self, batch: Batch) -> None:
        """Write a batch down."""
        write_durably(self._path(batch.id, "json"), lambda file: file.write(json.dumps(asdict(batch)).encode()))

    def find(self, owner: str, id: str) -> Batch | None:
        """The batch of this owner."""
        batch = self.read(id) if _ID.fullmatch(id) else None
        return batch if batch is not None and batch.owner == owner else None

    def of(self, owner: str) -> list[Batch]:
        """The batches of this owner, the newest first."""
        found = [batch for batch in self.all() if batch.owner == owner]
        return sorted(found, key=lambda batch: (batch.created, batch.id), reverse=True)

    def all(self) -> Iterator[Batch]:
        """Everybody's."""
        for path in self._folder.glob("batch_*.json"):
            if (batch := self.read(path.stem)) is not None:
                yield batch

    def read(self, id: str) -> Batch | None:
        """A batch as it was written last; one that shall end says so already."""
        try:
            batch = Batch.from_dict(json.loads(self._path(id, "json").read_bytes()))
        except (OSError, ValueError, TypeError):  # removed meanwhile, or not one of ours
            return None
        if not batch.ended and self.shall_end(id):
            batch.become("cancelling", self._path(id, "cancel").stat().st_mtime)
        return batch

    def ask_to_end(self, id: str) -> None:
        """Let whoever runs it know."""
        with storage_errors(self._folder):
            self._path(id, "cancel").touch()

    def shall_end(self, id: str) -> bool:
        """Whether somebody has asked."""
        return self._path(id, "cancel").exists()

    def remove(self, id: str) -> None:
        """Forget a batch."""
        for kind in ("json", "cancel", "lock"):
            self._path(id, kind).unlink(missing_ok=True)

    @contextmanager
    def taken(self, id: str) -> Generator[bool]:
        """Whether the batch is ours to run, for as long as the context lasts."""
        handle = os.open(self._path(id, "lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(handle)

    def _path(self, id: str, kind: str) -> Path:
        assert _ID.fullmatch(id), id
        return self._folder / f"{id}.{kind}"
