"""/v1/batches: begin, look at, list and cancel, as OpenAI's clients do."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cluster.serving.batches.batch import Batch
from cluster.serving.batches.runs import BatchRuns
from cluster.serving.files.routes import page
from cluster.serving.guard import caller
from cluster.serving.refusals import bad_request, not_found
from cluster.serving.routes import json_object, read_body

_MAX_BODY_BYTES = 64 * 1024
_LISTED = 20


def batch_routes(runs: BatchRuns) -> Sequence[Route]:
    """The routes, for `build_app`."""
    batches = _Batches(runs)
    return [
        Route("/v1/batches", batches.create, methods=["POST"]),
        Route("/v1/batches", batches.all, methods=["GET"]),
        Route("/v1/batches/{id}", batches.one, methods=["GET"]),
        Route("/v1/batches/{id}/cancel", batches.cancel, methods=["POST"]),
    ]


class _Batches:
    def __init__(self, runs: BatchRuns) -> None:
        self._runs = runs

    async def create(self, request: Request) -> Response:
        body = json_object(await read_body(request, _MAX_BODY_BYTES))
        batch = await asyncio.to_thread(self._runs.prepare, caller(request), body)
        told = batch.to_dict()
        self._runs.start(batch)
        return JSONResponse(told)

    async def all(self, request: Request) -> Response:
        batches = await asyncio.to_thread(self._runs.shelf.of, caller(request))
        return JSONResponse(page(batches, request, usual=_LISTED))

    async def one(self, request: Request) -> Response:
        return JSONResponse((await self._find(request)).to_dict())

    async def cancel(self, request: Request) -> Response:
        batch = await self._find(request)
        if batch.ended:
            raise bad_request(f"the batch has ended: {batch.status}", "invalid_value", status=409, param="batch_id")
        await asyncio.to_thread(self._runs.shelf.ask_to_end, batch.id)
        return JSONResponse((await self._find(request)).to_dict())

    async def _find(self, request: Request) -> Batch:
        batch = await asyncio.to_thread(self._runs.shelf.find, caller(request), request.path_params["id"])
        if batch is None:
            raise not_found("no such batch", param="batch_id")
        return batch
