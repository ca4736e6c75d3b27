"""`CascadeService`: the methods of cascade.proto. Errors are raised; the `Door` in front tells them."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from cascade_runtime.api import Answer, Piece
from cascade_runtime.errors import CascadeError, DeadlineExceeded
from cascade_runtime.proto import cascade_pb2 as wire
from cascade_runtime.proto.cascade_pb2_grpc import CascadeServicer
from cluster.serving.chat_answer import ChatHead
from cluster.serving.chat_request import MAX_DEADLINE_MS
from cluster.serving.gateway import Call, Gateway
from cluster.serving.names import given_key, given_request_id
from cluster.serving.readiness import Vitals, readiness
from cluster.serving.refusals import Refusal, not_found
from cluster.serving.routes import Elsewhere, recall
from cluster.serving.rpc.door import caller
from cluster.serving.rpc.messages import answer_of, body_of, opening_of, piece_of
from cluster.serving.rpc.session import answered_windows
from cluster.serving.shared_runs import Update

MAX_BYTES = "cascade-max-bytes"


class CascadeService(CascadeServicer):
    """In front of one replica's gateway."""

    def __init__(self, gateway: Gateway, vitals: Vitals, elsewhere: Elsewhere) -> None:
        self._gateway, self._vitals, self._elsewhere = gateway, vitals, elsewhere
        self._sessions = 0

    async def Generate(self, request: wire.GenerateRequest, context: Any) -> wire.Answer:
        """The whole answer."""
        async with aclosing(self._updates(request, context, stream=False)) as updates:  # type: ignore[type-var]
            head = await anext(updates)
            async for update in updates:
                if isinstance(update, Answer):
                    assert isinstance(head, ChatHead)  # it is what every run begins with
                    return answer_of(head, update)
        raise AssertionError("a run ended without an answer")

    async def GenerateStream(self, request: wire.GenerateRequest, context: Any) -> AsyncIterator[wire.Update]:
        """Its pieces first."""
        tokens = 0
        async with aclosing(self._updates(request, context, stream=True)) as updates:  # type: ignore[type-var]
            head = await anext(updates)
            assert isinstance(head, ChatHead)
            yield opening_of(head)
            async for update in updates:
                if isinstance(update, Piece):
                    yield piece_of(head, update, tokens)
                    tokens += len(update.tokens)
                elif isinstance(update, Answer):
                    yield wire.Update(answer=answer_of(head, update))

    async def _updates(self, request: wire.GenerateRequest, context: Any, *, stream: bool) -> AsyncIterator[Update]:
        who = caller(context, self._gateway)
        name = given_request_id(request.request_id or None)
        key = given_key(request.idempotency_key or None)
        place = self._gateway.enter(who)
        try:
            digest = await asyncio.to_thread(_digest, request) if key else ""
            body = body_of(request, request.recording) | {"stream": stream}
            _bound_by(context, body, self._gateway.limits.deadline_s)
            call = Call(body=body, request_id=name, stream=stream, idempotency_key=key, body_digest=digest)
            run = self._gateway.start(place, call)
            request.Clear()  # it may be large, and gRPC keeps it until the call has ended
            del body, call
        except BaseException:
            place.leave()
            raise
        try:
            async with aclosing(run.follow()) as updates:  # type: ignore[type-var]
                async for update in updates:
                    yield update
        except CascadeError as error:
            error.request_id = name  # the caller's, where the pipeline has another
            raise

    async def Session(
        self, request_iterator: AsyncIterator[wire.SessionRequest], context: Any
    ) -> AsyncIterator[wire.SessionReply]:
        """Window after window, see `answered_windows`."""
        who, gateway = caller(context, self._gateway), self._gateway
        most = gateway.recipe.cascade.slots + gateway.settings.max_queue
        if self._sessions >= most:
            message = f"{most} sessions are open"
            raise Refusal(status=503, type="server_error", code="overloaded", message=message, retry_after_s=1.0)
        self._sessions += 1
        try:
            await context.send_initial_metadata(((MAX_BYTES, str(gateway.settings.max_body_bytes)),))
            async with aclosing(answered_windows(gateway, who, request_iterator)) as replies:  # type: ignore[type-var]
                async for reply in replies:
                    yield reply
        finally:
            self._sessions -= 1

    async def Cancel(self, request: wire.RequestName, context: Any) -> wire.Cancelled:
        """End a request, wherever it runs."""
        who = caller(context, self._gateway)
        here = self._gateway.cancel(who, request.request_id)
        if not here and not await self._elsewhere.cancel(who, request.request_id):
            raise not_found("no such request is running")
        return wire.Cancelled()

    async def Trace(self, request: wire.RequestName, context: Any) -> wire.ChromeTrace:
        """What was done when."""
        who = caller(context, self._gateway)
        found = recall(self._gateway, who, request.request_id, "trace")
        if found is None:
            found = await self._elsewhere.recall(who, request.request_id, "trace")
        if not found:
            raise not_found("no such request among the last thousand that were answered")
        return wire.ChromeTrace(json=json.dumps(found))

    async def Models(self, request: wire.ModelsRequest, context: Any) -> wire.ModelList:
        """The one model, which answers to its recipe's name as well."""
        recipe = self._gateway.recipe
        model = wire.Model(
            id=self._gateway.limits.models[0],
            recipe=recipe.name,
            levels=recipe.cascade.levels,
            mode=recipe.cascade.mode,
            slots=recipe.cascade.slots,
            max_model_len=recipe.cascade.max_len,
            notes=recipe.marks,
        )
        return wire.ModelList(models=[model])

    async def Health(self, request: wire.HealthRequest, context: Any) -> wire.Readiness:
        """As /ready."""
        try:
            gone = await readiness(self._gateway, self._vitals)
        except Refusal as refusal:
            return wire.Readiness(ready=False, status=refusal.message)
        return wire.Readiness(ready=True, status="ok", without=gone)


def _digest(request: wire.GenerateRequest) -> str:
    return hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()


def _bound_by(context: Any, body: dict[str, Any], limit_s: float) -> None:
    """The call's own deadline, where it is the earlier one, is the request's. Raises `DeadlineExceeded`."""
    left_s = context.time_remaining()
    if left_s is None:
        return
    if left_s <= 0:
        raise DeadlineExceeded("no time was left when the request arrived")
    extra = body["cascade"]
    left_ms = max(1, int(1000 * min(left_s, limit_s)))
    if extra.get("deadline_ms", left_ms) >= left_ms and extra.get("deadline_ms", 0) <= MAX_DEADLINE_MS:
        extra["deadline_ms"] = left_ms
