"""`BatchRuns`: the batches that a replica runs: what is begun here, and what a process before it left unfinished."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from cascade_runtime.errors import InputError, RateLimitError
from cluster.serving.batches.batch import ENDPOINT, WINDOW, Batch
from cluster.serving.batches.run import BatchRun
from cluster.serving.batches.shelf import BatchShelf
from cluster.serving.files.store import FileStore
from cluster.serving.gateway import Gateway

_ACTIVE = 8  # of one caller at a time
_WAIT_S = 60.0
_KEYS = ("input_file_id", "endpoint", "completion_window", "metadata")
_MAX_PAIRS, _MAX_KEY, _MAX_VALUE = 16, 64, 512  # OpenAI's, of metadata


class BatchRuns:
    """The batches of one server. Where files are only kept as long as the server lives, so are they."""

    def __init__(self, files: FileStore, gateway: Gateway) -> None:
        self.shelf = BatchShelf(files.folder / "batches")
        self._files, self._gateway = files, gateway
        self._tasks: set[asyncio.Task[None]] = set()

    def prepare(self, owner: str, body: Mapping[str, Any]) -> Batch:
        """The batch that a body asks for, written down. Raises `InputError`, `RateLimitError`. Blocks."""
        wanted = {key: value for key, value in body.items() if value is not None}
        for key in wanted:
            if key not in _KEYS:
                raise InputError(str(key)[:60], "a field", f"only the fields {', '.join(_KEYS)}")
        for key, allowed in (("endpoint", ENDPOINT), ("completion_window", WINDOW)):
            if wanted.get(key) != allowed:
                raise InputError(key, str(wanted.get(key))[:60], allowed)
        source = wanted.get("input_file_id")
        stored = self._files.find(owner, source) if isinstance(source, str) else None
        if stored is None or stored.purpose != "batch":
            raise InputError("input_file_id", str(source)[:60], "the id of an uploaded file of purpose batch")
        metadata = _metadata(wanted.get("metadata"))
        earlier = self.shelf.of(owner)
        if sum(not batch.ended for batch in earlier) >= _ACTIVE:
            raise RateLimitError(f"{_ACTIVE} batches of this caller are not finished", _WAIT_S)
        now = int(time.time())
        for batch in earlier:
            if batch.ended and batch.created < now - self._files.max_age_s:
                self.shelf.remove(batch.id)
        batch = Batch(
            id=self.shelf.new_id(),
            owner=owner,
            input_file_id=stored.id,
            created=now,
            output=self._files.new_id(),
            error=self._files.new_id(),
            metadata=metadata,
        )
        self.shelf.save(batch)
        return batch

    def start(self, batch: Batch) -> None:
        """Run a batch, beside all others."""
        run = BatchRun(batch, self.shelf, self._files, self._gateway)
        task = asyncio.create_task(run.run(), name=batch.id)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def resume(self) -> None:
        """Go on with what is not finished and nobody runs."""
        for batch in self.shelf.all():
            if not batch.ended:
                self.start(batch)

    async def close(self) -> None:
        """Stop; what is not finished stays so."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _metadata(value: object) -> dict[str, str] | None:
    if value is None:
        return None
    allowed = f"up to {_MAX_PAIRS} texts of up to {_MAX_VALUE} characters under keys of up to {_MAX_KEY}"
    if not isinstance(value, Mapping) or len(value) > _MAX_PAIRS:
        raise InputError("metadata", type(value).__name__, allowed)
    for key, text in value.items():
        if len(str(key)) > _MAX_KEY or not isinstance(text, str) or len(text) > _MAX_VALUE:
            raise InputError(f"metadata.{str(key)[:60]}", type(text).__name__, allowed)
    return {str(key): str(text) for key, text in value.items()}
