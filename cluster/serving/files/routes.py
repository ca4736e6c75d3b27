"""/v1/files: what a caller has left here, as OpenAI's clients upload, list, read and delete it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from cascade_runtime.errors import InputError
from cluster.serving.files.store import FileStore, StoredFile
from cluster.serving.files.upload import receive
from cluster.serving.guard import caller
from cluster.serving.refusals import not_found, overloaded

_UPLOADS = 4  # at a time
_MOST = 10_000  # of one answer


class Listed(Protocol):
    """Something that has an id and can be told."""

    @property
    def id(self) -> str: ...

    def to_dict(self) -> dict[str, Any]: ...


T = TypeVar("T", bound=Listed)


def file_routes(store: FileStore) -> Sequence[Route]:
    """The routes, for `build_app`."""
    files = _Files(store)
    return [
        Route("/v1/files", files.add, methods=["POST"]),
        Route("/v1/files", files.all, methods=["GET"]),
        Route("/v1/files/{id}", files.one, methods=["GET"]),
        Route("/v1/files/{id}", files.delete, methods=["DELETE"]),
        Route("/v1/files/{id}/content", files.content, methods=["GET"]),
    ]


class _Files:
    def __init__(self, store: FileStore) -> None:
        self._store = store
        self._uploading = 0

    async def add(self, request: Request) -> Response:
        if self._uploading >= _UPLOADS:
            raise overloaded(f"{_UPLOADS} files are being uploaded", "overloaded")
        self._uploading += 1
        try:
            stored = await receive(request, self._store, caller(request))
        finally:
            self._uploading -= 1
        return JSONResponse(stored.to_dict())

    async def all(self, request: Request) -> Response:
        files = await asyncio.to_thread(self._store.of, caller(request))
        purpose = request.query_params.get("purpose")
        return JSONResponse(page([file for file in files if purpose in (None, file.purpose)], request, usual=10_000))

    async def one(self, request: Request) -> Response:
        return JSONResponse((await self._find(request)).to_dict())

    async def content(self, request: Request) -> Response:
        file = await self._find(request)
        headers = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox"}
        return FileResponse(
            self._store.path(file.id),
            media_type="application/octet-stream",
            filename=file.name,
            headers=headers,
        )

    async def delete(self, request: Request) -> Response:
        id = request.path_params["id"]
        if not await asyncio.to_thread(self._store.delete, caller(request), id):
            raise not_found("no such file", param="file_id")
        return JSONResponse({"id": id, "object": "file", "deleted": True})

    async def _find(self, request: Request) -> StoredFile:
        file = await asyncio.to_thread(self._store.find, caller(request), request.path_params["id"])
        if file is None:
            raise not_found("no such file", param="file_id")
        return file


def page(items: Sequence[T], request: Request, usual: int) -> dict[str, Any]:
    """A part of a list as OpenAI's clients ask for it: items newest first; `limit`, `after` an id, `order`."""
    query = request.query_params
    limit = query.get("limit", str(usual))
    if not (limit.isascii() and limit.isdecimal() and len(limit) < 7) or not 1 <= int(limit) <= _MOST:
        raise InputError("limit", limit[:60], f"an integer from 1 to {_MOST}")
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InputError("order", order[:60], "asc, desc")
    ordered = list(items) if order == "desc" else list(reversed(items))
    after = query.get("after")
    if after is not None:
        at = next((number for number, item in enumerate(ordered) if item.id == after), None)
        if at is None:
            raise InputError("after", after[:60], "an id of this list")
        ordered = ordered[at + 1 :]
    shown = ordered[: int(limit)]
    return {
        "object": "list",
        "data": [item.to_dict() for item in shown],
        "first_id": shown[0].id if shown else None,
        "last_id": shown[-1].id if shown else None,
        "has_more": len(ordered) > len(shown),
    }
