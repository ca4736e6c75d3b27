"""`WindowRun`: one window's questions on their way through the transport, their outcomes on their way to the disk.

    groups -> waves of questions -> transport -> outcomes -> shards

A wave is what is handed to the cascade at once; while it runs the recordings of the next are read, and two waves
overlap, so that a pipeline does not run dry between them. Outcomes wait for their shard `commit_s` seconds or
`shard_rows` rows. A row on which the cascade fails is asked a second time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence

from cascade_runtime.api import Answer, GenerateRequest
from cascade_runtime.batch.config import BatchConfig
from cascade_runtime.batch.outcome import Outcome, answered, refused
from cascade_runtime.batch.progress import Progress
from cascade_runtime.batch.question import Question
from cascade_runtime.batch.recordings import Recordings
from cascade_runtime.batch.shards import Shards
from cascade_runtime.batch.windows import Window
from cascade_runtime.errors import CascadeError, StageError
from cascade_runtime.transports import Transport

MAX_FAILURES = 32  # rows the cascade may fail on, one after the other
_WAVES = 2  # that overlap
_WAVE_EVENTS = 40_000_000  # in the recordings of a wave


class WindowRun:
    """One window on its way. Raises what `run_batch` raises."""

    def __init__(
        self,
        config: BatchConfig,
        transport: Transport,
        shards: Shards,
        progress: Progress,
        recordings: Recordings,
        window: Window,
    ) -> None:
        self.config, self.transport, self.shards = config, transport, shards
        self.progress, self.recordings, self.window = progress, recordings, window
        self._waiting: list[Outcome] = []  # for their shard
        self._since = time.monotonic()
        self._again: list[Question] = []
        self._failures = 0

    async def run(self) -> None:
        """Settle every row of the window that is not committed, and commit it."""
        try:
            for row in self.window.bad:
                if not self.shards.is_done(row.index):
                    self._settle(refused(row, row.error))
            left = [q for group in self.window.groups for q in group if not self.shards.is_done(q.index)]
            await self._ask(left, last=False)
            again, self._again = self._again, []
            await self._ask(again, last=True)
        finally:
            self._commit()

    async def _ask(self, questions: Sequence[Question], *, last: bool) -> None:
        """Ask everything, some waves at a time. `last`: what fails now is settled as a failure."""
        running: set[asyncio.Task[None]] = set()
        left = iter(questions)
        try:
            while wave := await asyncio.to_thread(self._next_wave, left):
                if len(running) >= _WAVES:
                    done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        task.result()
                    running -= done
                running.add(asyncio.create_task(self._run_wave(wave, last=last)))
            await asyncio.gather(*running)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def _next_wave(self, left: Iterator[Question]) -> list[tuple[Question, GenerateRequest | CascadeError]]:
        """The next questions with what they are about. In a thread: reading a recording takes its time."""
        wave: list[tuple[Question, GenerateRequest | CascadeError]] = []
        held: dict[int, int] = {}
        for question in left:
            try:
                events = self.recordings.read(question)
                held[id(events)] = len(events)
                request: GenerateRequest | CascadeError = GenerateRequest(
                    events=events,
                    question=question.prompt,
                    sampling=self.config.sampling,
                    speculate=self.config.speculate,
                )
            except CascadeError as error:
                request = error
            wave.append((question, request))
            if len(wave) >= self.config.concurrency or sum(held.values()) >= _WAVE_EVENTS:
                break
        return wave

    async def _run_wave(self, wave: Sequence[tuple[Question, GenerateRequest | CascadeError]], *, last: bool) -> None:
        for question, request in wave:
            if isinstance(request, CascadeError):
                self._settle(refused(question, request))
        asked = [(question, request) for question, request in wave if isinstance(request, GenerateRequest)]
        if not asked:
            return
        async for position, update in self.transport.run([request for _, request in asked], None, False):
            question = asked[position][0]
            if isinstance(update, Answer):
                self._failures = 0
                self._settle(answered(question, update), update)
            elif isinstance(update, CascadeError):
                self._refuse(question, update, last=last)

    def _refuse(self, question: Question, error: CascadeError, *, last: bool) -> None:
        outcome = refused(question, error)
        if outcome.failed:
            self._failures += 1
            if self._failures >= MAX_FAILURES:
                raise StageError("batch", question.id, f"{self._failures} rows in turn failed, the last one: {error}")
            if not last:
                self._again.append(question)
                return
        self._settle(outcome)

    def _settle(self, outcome: Outcome, answer: Answer | None = None) -> None:
        self._waiting.append(outcome)
        self.progress.add(1, answer)
        late = time.monotonic() - self._since >= self.config.commit_s
        if len(self._waiting) >= self.config.shard_rows or late:
            self._commit()

    def _commit(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._since = time.monotonic()
        for failed in (False, True):
            rows = [outcome.to_dict() for outcome in waiting if outcome.failed == failed]
            self.shards.commit(self.window.number, rows, failed=failed)
