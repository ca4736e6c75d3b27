"""`receive`: a multipart body, as OpenAI's clients upload a file, -> a file in the store. Nothing of it is kept where
it is not whole, too large, late, or sent by a page of somebody else's.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from urllib.parse import urlsplit

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from cascade_runtime.errors import InputError
from cluster.serving.files.store import FileStore, StoredFile
from cluster.serving.refusals import Refusal, bad_request

PURPOSES = ("batch", "user_data", "vision")
"""What a file may be for: `batch` is a batch's input; the other two are recordings."""
_UPLOAD_S = 600.0
_FIELDS = ("purpose", "file", "expires_after[anchor]", "expires_after[seconds]")
_FRAME_BYTES = 16 * 1024  # of the parts around a file
_MIN_AGE_S, _MAX_NAME = 3600, 255
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f]")


async def receive(request: Request, store: FileStore, owner: str) -> StoredFile:
    """Read an upload and store it. Raises `Refusal`, and what `FileStore.add` raises."""
    _check_origin(request)
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        message = "a file is uploaded as multipart/form-data with the fields purpose and file"
        raise bad_request(message, "unsupported_media_type", status=415)
    limit = store.max_file_bytes + _FRAME_BYTES
    parser = MultiPartParser(
        request.headers, _bounded(request, limit), max_files=1, max_fields=len(_FIELDS), max_part_size=_FRAME_BYTES
    )
    try:
        async with asyncio.timeout(_UPLOAD_S):
            form = await parser.parse()
    except TimeoutError:
        raise bad_request(f"the file did not arrive within {_UPLOAD_S:g} s", "body_too_slow", status=408) from None
    except (MultiPartException, KeyError, ValueError) as error:  # KeyError: a part without a name or boundary
        raise bad_request(f"the body is not a form with one file: {error}"[:200], "invalid_value") from error
    try:
        return await asyncio.to_thread(_store, form, store, owner)
    finally:
        await form.close()


def _store(form: FormData, store: FileStore, owner: str) -> StoredFile:
    for name in form:
        if name not in _FIELDS:
            raise InputError(name[:60], "a field", f"only the fields {', '.join(_FIELDS)}")
    purpose, file = form.get("purpose"), form.get("file")
    if purpose not in PURPOSES:
        raise InputError("purpose", str(purpose)[:60], ", ".join(PURPOSES))
    if not isinstance(file, UploadFile):
        raise InputError("file", type(file).__name__, "a file with a name")
    name = _UNPRINTABLE.sub("?", file.filename or "file").encode("utf-8", "replace").decode()[:_MAX_NAME]
    return store.add(file.file, owner=owner, name=name, purpose=str(purpose), age_s=_age_s(form, store))


def _age_s(form: FormData, store: FileStore) -> int | None:
    anchor, seconds = form.get("expires_after[anchor]"), form.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise InputError("expires_after[anchor]", str(anchor)[:60], "created_at")
    text = str(seconds)
    if not (text.isascii() and text.isdecimal() and len(text) < 10) or not _MIN_AGE_S <= int(text) <= store.max_age_s:
        allowed = f"an integer from {_MIN_AGE_S} to {store.max_age_s}"
        raise InputError("expires_after[seconds]", text[:60], allowed)
    return int(text)


async def _bounded(request: Request, limit: int) -> AsyncGenerator[bytes]:
    """The body; what is too large is refused as soon as that is known."""
    too_large = bad_request(f"a file may have {limit - _FRAME_BYTES} bytes at most", "body_too_large", status=413)
    announced = request.headers.get("content-length", "0")
    if not announced.isdecimal() or len(announced) > 18 or int(announced) > limit:
        raise too_large
    had = 0
    async for part in request.stream():
        had += len(part)
        if had > limit:
            raise too_large
        yield part


def _check_origin(request: Request) -> None:
    """A browser asks nobody before it sends a form from one site to another; all other bodies here are JSON, where it
    asks first.
    """
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != request.headers.get("host", "").lower():
        message = "this page may not upload here"
        raise Refusal(status=403, type="permission_error", code="not_this_origin", message=message)
