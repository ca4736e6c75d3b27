"""`Gateway`: what stands between a server's doors and one pipeline: who may enter, what is run, what is remembered.

    place = gateway.enter(caller)        a bounded queue: refused at once, before a body is read
    place = await gateway.enter_patiently(caller)    for work that can wait: once a slot more than it takes is free
    run   = gateway.start(place, ...)    the validator, then the pipeline; the same key follows the run that is there
    run.follow()                         a `ChatHead`, pieces as the target confirms them, the `Answer`

It knows no HTTP. All of it runs on one event loop; recordings are decoded in threads.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import cascade_runtime
from cascade_runtime.api import Answer, Piece
from cascade_runtime.config import Recipe
from cascade_runtime.errors import CapacityError, CascadeError, DeadlineExceeded, InputError
from cascade_runtime.events import Events
from cascade_runtime.transports import Transport
from cluster.serving.admission import PATIENT, Admission
from cluster.serving.chat_answer import ChatHead
from cluster.serving.chat_request import ChatLimits, ChatRequest, parse_chat
from cluster.serving.counters import ServerCounters
from cluster.serving.files.store import FileStore
from cluster.serving.ledger import Entry, Ledger
from cluster.serving.media import Uploads
from cluster.serving.settings import ServerSettings
from cluster.serving.shared_runs import Run, SharedRuns, Update

log = logging.getLogger(__name__)


class Place:
    """One request's place in the queue; `leave` gives it back, once."""

    def __init__(self, caller: str, leave: Callable[[], None]) -> None:
        self.caller = caller
        self._leave: Callable[[], None] | None = leave

    def leave(self) -> None:
        if self._leave is not None:
            self._leave()
            self._leave = None


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a door. body: parsed JSON; idempotency_key and body_digest: both or neither."""

    body: Mapping[str, Any]
    request_id: str
    stream: bool
    idempotency_key: str | None = None
    body_digest: str = ""


class Gateway:
    """The front of one pipeline that `transport` reaches."""

    def __init__(
        self, settings: ServerSettings, recipe: Recipe, transport: Transport, files: FileStore | None = None
    ) -> None:
        self.settings, self.recipe, self.files = settings, recipe, files
        self.limits = settings.chat_limits(recipe)
        self.counters = ServerCounters(settings.model)
        self.draining = False
        self._transport = transport
        self._admission = Admission(
            room=recipe.cascade.slots + settings.max_queue,
            key_concurrency=settings.key_concurrency,
            key_per_minute=settings.key_per_minute,
        )
        self._vacated = asyncio.Event()
        self._shared = SharedRuns()
        self._ledger = Ledger()
        self._fingerprint = f"cascade-{cascade_runtime.__version__}-{recipe.name}"

    @property
    def inside(self) -> int:
        """Requests that hold a place now."""
        return self._admission.inside

    def enter(self, caller: str) -> Place:
        """A place in the queue. Raises `CapacityError`, `RateLimitError`."""
        if self.draining:
            raise CapacityError("the server is draining")
        self._admission.enter(caller, time.monotonic())
        return Place(caller, partial(self._leave, caller))

    async def enter_patiently(self, caller: str) -> Place:
        """A place for work that can wait: it leaves one slot for those who cannot, and none is taken while somebody
        waits. It does not count among its caller's requests. While the server drains there is none.
        """
        while self.draining or not self._admission.enter_patient(max(1, self.recipe.cascade.slots - 1)):
            self._vacated.clear()
            await self._vacated.wait()
        return Place(caller, partial(self._leave, PATIENT))

    def _leave(self, counted_as: str) -> None:
        self._admission.leave(counted_as)
        self._vacated.set()

    def start(self, place: Place, call: Call) -> Run:
        """The run of a call, which from now on holds its place: a new one, or the one that its idempotency key names.

        Raises `InputError` for a key that came with another body and for a request id that is being answered. What is
        wrong with the body, the run's followers learn.
        """
        key = call.idempotency_key
        if key is not None:
            earlier = self._shared.find(place.caller, key, call.body_digest)
            if earlier is not None:
                place.leave()
                return earlier
        known = self._ledger.find(place.caller, call.request_id)
        if known is not None and known.run is not None and not known.run.cancelled:
            raise InputError("X-Request-Id", call.request_id, "an id that is not being answered already")
        entry = Entry(call.request_id, int(time.time()), call.stream)

        def ended(outcome: Answer | CascadeError) -> None:
            entry.outcome, entry.run, entry.ended_at = outcome, None, round(time.time(), 3)
            self.counters.ended(outcome)
            place.leave()
            if isinstance(outcome, CascadeError):
                log.info("request %s: %s: %s", entry.request_id, type(outcome).__name__, outcome)

        entry.run = Run(self._answer(place.caller, call, entry), ended)
        self._ledger.open(place.caller, entry)
        if key is not None:
            self._shared.keep(place.caller, key, call.body_digest, entry.run)
        return entry.run

    def limits_of(self, caller: str) -> ChatLimits:
        """What this caller may ask: about files that it has left here, too."""
        if self.files is None:
            return self.limits
        return replace(self.limits, media=replace(self.limits.media, uploads=Uploads(self.files, caller)))

    def find(self, caller: str, request_id: str) -> Entry | None:
        """What is known about a request of this caller."""
        return self._ledger.find(caller, request_id)

    def cancel(self, caller: str, request_id: str) -> bool:
        """End a request of this caller; whether it was running."""
        entry = self._ledger.find(caller, request_id)
        if entry is None or entry.run is None:
            return False
        entry.run.cancel()
        return True

    async def _answer(self, caller: str, call: Call, entry: Entry) -> AsyncIterator[Update]:
        begun = time.monotonic()
        chat = await asyncio.to_thread(parse_chat, call.body, self.limits_of(caller), seed=_seed(call))
        del call  # a body may be large, and a run is remembered
        entry.head = self._head(chat, entry)
        yield entry.head
        left_s = chat.deadline_s - (time.monotonic() - begun)
        if left_s <= 0:
            raise DeadlineExceeded(f"request {entry.request_id}: no time left once its recording was read")
        grace_s = left_s + self.recipe.deadlines.control_s  # the pipeline keeps to left_s, unless it is silent
        try:
            async with (
                asyncio.timeout(grace_s),
                aclosing(self._transport.run([chat.request], left_s, chat.stream)) as updates,  # type: ignore[type-var]
            ):
                async for _, update in updates:
                    if isinstance(update, CascadeError):
                        raise update
                    yield update if isinstance(update, Answer) else cast(Piece, update)
        except TimeoutError:
            raise DeadlineExceeded(f"request {entry.request_id}: the pipeline is silent") from None

    def _head(self, chat: ChatRequest, entry: Entry) -> ChatHead:
        events = cast(Events, chat.request.events)
        recording = {
            "events": len(events),
            "width": events.width,
            "height": events.height,
            "duration_us": events.duration_us,
            "simulated": chat.simulated,
        }
        return ChatHead(
            request_id=entry.request_id,
            created=entry.created,
            model=chat.model,
            fingerprint=self._fingerprint,
            recipe=self.recipe.name,
            levels=self.recipe.cascade.levels,
            seed=chat.request.sampling.seed,
            recording=recording,
            include_usage=chat.include_usage,
        )


def _seed(call: Call) -> int:
    """For a sampled answer whose body names none: by chance; a retry, even on another replica, gets the same."""
    if call.idempotency_key is None:
        return secrets.randbits(53)  # what JavaScript can tell back
    return int(hashlib.sha256(f"{call.idempotency_key} {call.body_digest}".encode()).hexdigest()[:13], 16)
