"""`BatchRun`: one batch from its input to its output.

    read the whole input ─> per row: wait for a place that nobody else wants, ask the gateway, write one line ─> done

A line that was written is an answer that is kept: a run that was stopped goes on behind it. Rows whose answer failed go
to the error file with the response that a caller would have got; nothing is asked twice, but where all was full. A
disk without room ends the batch with the lines that it has; how long a batch may take is counted by the monotonic clock
from where the process found it, so that no step of the wall clock ends it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from contextlib import aclosing
from typing import Any, BinaryIO

from cascade_runtime.api import Answer
from cascade_runtime.errors import CapacityError, CascadeError
from cluster.serving.batches.batch import Batch
from cluster.serving.batches.lines import Lines
from cluster.serving.batches.rows import BadLine, BatchRow, check, read_rows
from cluster.serving.batches.shelf import BatchShelf
from cluster.serving.chat_answer import ChatHead, completion
from cluster.serving.files.store import FileStore
from cluster.serving.gateway import Call, Gateway, Place
from cluster.serving.refusals import refusal_of

log = logging.getLogger(__name__)

_TICK_S = 0.25  # between looks at whether it shall end, and between writings of its counts
_TRIES = 3
_AGAIN_S = 1.0
_LINE_FRAME_BYTES = 4096
OUTPUT = "batch_output"


class BatchRun:
    """One batch in this process."""

    def __init__(self, batch: Batch, shelf: BatchShelf, files: FileStore, gateway: Gateway) -> None:
        self.batch = batch
        self._shelf, self._files, self._gateway = shelf, files, gateway
        self._longest = gateway.settings.max_body_bytes + _LINE_FRAME_BYTES
        self._done: set[str] = set()
        self._lines: dict[str, Lines] = {}
        self._until = time.monotonic() + batch.expires - time.time()

    async def run(self) -> None:
        """Until it has ended, or this call is cancelled: then it can be run again."""
        with self._shelf.taken(self.batch.id) as ours:
            if not ours:
                return
            source = self._files.find(self.batch.owner, self.batch.input_file_id)
            if source is None:
                await self._fail(
                    [BadLine(0, "file_not_found", "the input file is not there any more", "input_file_id")]
                )
                return
            try:
                with self._files.path(source.id).open("rb") as file:
                    if await self._check(file):
                        await self._answer(file)
            except CascadeError as error:  # of the disk
                log.error("batch %s: %s", self.batch.id, error)
                await self._fail_stored()
            finally:
                for lines in self._lines.values():
                    lines.close()

    async def _check(self, file: BinaryIO) -> bool:
        """Look through the input, unless that was done before."""
        if self.batch.status != "validating":
            return True
        self.batch.total, wrong = await asyncio.to_thread(check, file, self._longest)
        if wrong:
            await self._fail(wrong)
            return False
        self.batch.become("in_progress", time.time())
        await self._save()
        return True

    async def _answer(self, file: BinaryIO) -> None:
        await asyncio.to_thread(self._open_lines)
        feeding = asyncio.create_task(self._feed(file))
        end = ""
        try:
            told = (-1, -1)
            while not feeding.done() and not end:
                await asyncio.wait([feeding], timeout=_TICK_S)
                end = self._why_end()
                if (counts := (self.batch.completed, self.batch.failed)) != told:
                    told = counts
                    await self._save()
                    await asyncio.to_thread(self._check_room)
        finally:
            feeding.cancel()
            (broken,) = await asyncio.gather(feeding, return_exceptions=True)
        if isinstance(broken, BaseExceptionGroup) and (full := broken.subgroup(CascadeError)) is not None:
            raise _first(full)
        if isinstance(broken, Exception):  # a programmer's error: told by the log, not to callers
            log.error("batch %s ended early", self.batch.id, exc_info=broken)
            await self._fail([BadLine(0, "internal_error", "the batch ended early")])
            return
        if end == "expired":
            await asyncio.to_thread(self._expire, file)
        await self._finish(end or "completed")

    async def _feed(self, file: BinaryIO) -> None:
        file.seek(0)
        rows = read_rows(file, self._longest)
        async with asyncio.TaskGroup() as group:
            while (row := await asyncio.to_thread(next, rows, None)) is not None:
                if isinstance(row, BadLine) or row.custom_id in self._done:  # `check` has refused bad ones
                    continue
                place = await self._gateway.enter_patiently(self.batch.owner)
                task = group.create_task(self._ask(place, row))
                task.add_done_callback(lambda _, place=place: place.leave())  # where it was cancelled before it began

    async def _ask(self, place: Place, row: BatchRow) -> None:
        """One row, which ends in one line."""
        name = f"{self.batch.id}-{row.number}"
        call = Call(body=row.body, request_id=name, stream=False)
        tries = 0
        while True:
            tries += 1
            try:
                status, body = 200, await self._completion(place, call)
            except CascadeError as error:
                if isinstance(error, CapacityError) and tries < _TRIES:
                    await asyncio.sleep(_AGAIN_S)
                    place = await self._gateway.enter_patiently(self.batch.owner)
                    continue
                refusal = refusal_of(error)
                status, body = refusal.status, refusal.body(name)
            break
        response = {"status_code": status, "request_id": name, "body": body}
        self._write(row.custom_id, f"batch_req_{name[6:]}", response, None)

    async def _completion(self, place: Place, call: Call) -> dict[str, Any]:
        try:
            run = self._gateway.start(place, call)
        except BaseException:
            place.leave()
            raise
        async with aclosing(run.follow()) as updates:  # type: ignore[type-var]
            head = await anext(updates)
            assert isinstance(head, ChatHead)  # what every run begins with
            async for update in updates:
                if isinstance(update, Answer):
                    return completion(head, update)
        raise AssertionError("a run ended without an answer")

    # -- its files ---------------------------------------------------------------------------------------------------

    def _open_lines(self) -> None:
        """Open both files to go on behind their last whole line."""
        for id in (self.batch.output, self.batch.error):
            self._lines[id] = Lines(self._files.path(id))
        counts: list[int] = []
        for lines in self._lines.values():
            names = {json.loads(line)["custom_id"] for line in lines}
            counts.append(len(names))
            self._done |= names
        self.batch.completed, self.batch.failed = counts

    def _write(self, custom_id: str, id: str, response: dict[str, Any] | None, error: dict[str, str] | None) -> None:
        good = response is not None and response["status_code"] == 200
        line = {"id": id, "custom_id": custom_id, "response": response, "error": error}
        lines = self._lines[self.batch.output if good else self.batch.error]
        lines.add(json.dumps(line, ensure_ascii=False).encode())
        self._done.add(custom_id)
        self.batch.completed += good
        self.batch.failed += not good

    def _why_end(self) -> str:
        if self._shelf.shall_end(self.batch.id):
            return "cancelled"
        return "expired" if time.monotonic() > self._until else ""

    def _expire(self, file: BinaryIO) -> None:
        file.seek(0)
        error = {"code": "batch_expired", "message": "this request was not asked before the batch expired"}
        for row in read_rows(file, self._longest):
            if isinstance(row, BatchRow) and row.custom_id not in self._done:
                self._write(row.custom_id, f"batch_req_{self.batch.id[6:]}-{row.number}", None, error)

    def _check_room(self) -> None:
        if self._files.used_bytes() > self._files.max_bytes:
            raise CapacityError(f"more than {self._files.max_bytes} bytes are stored")

    async def _finish(self, status: str) -> None:
        if status == "completed":
            self.batch.become("finalizing", time.time())
        elif status == "cancelled":
            self.batch.become("cancelling", time.time())
        await asyncio.to_thread(self._keep_files)
        self.batch.become(status, time.time())
        await self._save()

    async def _fail(self, problems: list[BadLine]) -> None:
        self.batch.problems = [problem.to_dict() for problem in problems]
        await asyncio.to_thread(self._keep_files)
        self.batch.become("failed", time.time())
        await self._save()

    async def _fail_stored(self) -> None:
        """Say that the disk has failed, as soon as it has room for that; until then the batch has not ended."""
        while True:
            try:
                await self._fail([BadLine(0, "storage_failed", "the answers cannot be stored")])
                return
            except CascadeError:
                self.batch.status = "in_progress"
                await asyncio.sleep(_AGAIN_S)

    def _keep_files(self) -> None:
        """Let the files be seen that have a line; the others go."""
        for id, name in ((self.batch.output, "output"), (self.batch.error, "error")):
            path = self._files.path(id)
            if path.exists() and path.stat().st_size:
                name = f"{self.batch.id}_{name}.jsonl"
                self._files.finish(id, owner=self.batch.owner, name=name, purpose=OUTPUT)
                self.batch.written = [*(each for each in self.batch.written if each != id), id]
            else:
                path.unlink(missing_ok=True)

    async def _save(self) -> None:
        await asyncio.to_thread(self._shelf.save, self.batch)


def _first(group: BaseExceptionGroup[CascadeError]) -> CascadeError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, CascadeError)
    return error
