"""The web page: its files in `cluster/web/`, and the two things that only it asks for.

    GET  /   /page/{file}           open to everybody who may reach the server: they hold nothing of anybody's
    GET  /v1/cascade/samples        {"data": [{"name", "title"}]}: simulated scenes
    GET  /v1/cascade/samples/{name} one of them, an Arrow IPC stream
    POST /v1/cascade/frames         {"recording": {"url" or "file_id", ...} as in `events_url`} -> {"facts",
                                    "simulated", "frames": [{"start_us", "end_us", "events", "png"}]}, png in base64

The page runs under a strict content security policy: scripts and styles of this server only, connections to it only.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cascade_runtime.errors import InputError
from cascade_runtime.events import Events, describe
from cascade_runtime.events.picture import film
from cascade_runtime.training.scenes import simulate_scene
from cluster.serving.gateway import Gateway
from cluster.serving.guard import caller
from cluster.serving.media import read_media
from cluster.serving.refusals import not_found
from cluster.serving.routes import json_object, read_body

_FOLDER = Path(__file__).parents[1] / "web"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_FRAMES = 24
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_SAMPLES = {"bar": ("A bar", 9), "shapes": ("Shapes", 5), "texture": ("A texture", 3), "noise": ("Only noise", 12)}


def page_routes(gateway: Gateway) -> Sequence[Route]:
    """The page's routes, for `build_app`."""
    page = _Page(gateway)
    return [
        Route("/", page.file, methods=["GET"]),
        Route("/page/{name}", page.file, methods=["GET"]),
        Route("/v1/cascade/samples", page.samples, methods=["GET"]),
        Route("/v1/cascade/samples/{name}", page.sample, methods=["GET"]),
        Route("/v1/cascade/frames", page.frames, methods=["POST"]),
    ]


class _Page:
    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self._files = {path.name: path.read_bytes() for path in _FOLDER.iterdir() if path.suffix in _TYPES}

    async def file(self, request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        if name not in self._files:
            raise not_found("no such file")
        return Response(self._files[name], media_type=_TYPES[Path(name).suffix], headers=_HEADERS)

    async def samples(self, request: Request) -> Response:
        return JSONResponse({"data": [{"name": name, "title": title} for name, (title, _) in _SAMPLES.items()]})

    async def sample(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in _SAMPLES:
            raise not_found(f"no such sample; there are: {', '.join(_SAMPLES)}")
        data = await asyncio.to_thread(_sample, name)
        return Response(data, media_type="application/vnd.apache.arrow.stream")

    async def frames(self, request: Request) -> Response:
        place = self.gateway.enter(caller(request))  # it takes a core for a while, as an answer does
        try:
            raw = await read_body(request, self.gateway.settings.max_body_bytes)
            return JSONResponse(await asyncio.to_thread(self._frames, raw, place.caller))
        finally:
            place.leave()

    def _frames(self, raw: bytes, who: str) -> dict[str, Any]:
        body = json_object(raw)
        for key in body:
            if key != "recording":
                raise InputError(key[:40], "a key", "only the key recording")
        media = read_media(body.get("recording"), "recording", self.gateway.limits_of(who).media)
        return {"facts": _facts(media.events), "simulated": media.simulated, "frames": list(_film(media.events))}


def _facts(events: Events) -> dict[str, object]:
    told = describe(events)
    return {name: told[name] for name in ("events", "width", "height", "duration_us", "on_share")}


def _film(events: Events) -> list[dict[str, Any]]:
    return [
        {
            "start_us": frame.start_us,
            "end_us": frame.end_us,
            "events": frame.events,
            "png": base64.b64encode(frame.png).decode("ascii"),
        }
        for frame in film(events, _FRAMES)
    ]


@cache
def _sample(name: str) -> bytes:
    return simulate_scene(_SAMPLES[name][1]).events.to_ipc_bytes("zstd")
