"""`document(gateway, routes)`: the HTTP API as an OpenAPI 3.1 document, which `GET /openapi.json` gives.

The body of a question is described from the validator's tables (`chat_schema.py`), answers in `answer_schema.py`, and
`_OPERATIONS` has a line for every path and method; a test compares them with the routes that there are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from starlette.routing import Route

import cascade_runtime
from cluster.serving.answer_schema import SCHEMAS
from cluster.serving.batches.batch import ENDPOINT, WINDOW
from cluster.serving.chat_schema import EXAMPLE_URL, chat_body, example_body, media_source
from cluster.serving.files.upload import PURPOSES
from cluster.serving.gateway import Gateway

Json = dict[str, Any]
_ONE = "/v1/cascade/requests/{id}"
_ARROW = "application/vnd.apache.arrow.stream"
_BODY = (408, 413, 415, 422)  # what may be wrong with a body as such


@dataclass(frozen=True)
class _Operation:
    """One path and method. ok: media type -> name in SCHEMAS, or None for what is no JSON; also: other statuses."""

    does: str
    ok: Mapping[str, str | None]
    also: tuple[int, ...] = ()
    body: str | None = None
    open: bool = False
    headers: tuple[str, ...] = field(default=())


def _json(name: str) -> dict[str, str | None]:
    return {"application/json": name}


_OPERATIONS: dict[tuple[str, str], _Operation] = {
    ("POST", "/v1/chat/completions"): _Operation(
        "Answer one question about one recording, whole or as server-sent events.",
        {"application/json": "ChatCompletion", "text/event-stream": None},
        (404, 409, *_BODY, 429, 499, 500, 503, 504),
        "ChatCompletionRequest",
        headers=("Idempotency-Key",),
    ),
    ("GET", "/v1/models"): _Operation("The one model of this server.", _json("Models")),
    ("GET", "/v1/models/{id}"): _Operation("The model of this name.", _json("Model"), (404,)),
    ("GET", _ONE): _Operation("What became of a request, among the last thousand.", _json("CascadeRequest"), (404,)),
    ("DELETE", _ONE): _Operation("End a request that runs.", _json("Cancelled"), (404,)),
    ("POST", f"{_ONE}/cancel"): _Operation("End a request that runs.", _json("Cancelled"), (404,)),
    ("GET", f"{_ONE}/trace"): _Operation("A request's Chrome trace.", _json("Trace"), (404,)),
    ("GET", "/health"): _Operation("The server runs.", _json("Status"), open=True),
    ("GET", "/ready"): _Operation("Answers can be made.", _json("Ready"), (503,), open=True),
    ("GET", "/health/deep"): _Operation("One token through all stages.", _json("DeepHealth"), (503,)),
    ("GET", "/metrics"): _Operation("Prometheus metrics.", {"text/plain": None}),
    ("GET", "/version"): _Operation("The project's version.", _json("Version")),
    ("GET", "/openapi.json"): _Operation("This document.", {"application/json": None}),
    ("GET", "/"): _Operation("The web page.", {"text/html": None}, open=True),
    ("GET", "/page/{name}"): _Operation(
        "A file of the page.", {"text/css": None, "text/javascript": None, "image/svg+xml": None}, (404,), open=True
    ),
    ("GET", "/v1/cascade/samples"): _Operation("Simulated scenes.", _json("Samples")),
    ("GET", "/v1/cascade/samples/{name}"): _Operation("One of them.", {_ARROW: None}, (404,)),
    ("POST", "/v1/cascade/frames"): _Operation(
        "Pictures of a recording.", _json("Frames"), (*_BODY, 429, 503), "FramesRequest"
    ),
    ("GET", "/v1/cascade/pipeline"): _Operation(
        "What every stage is doing, as server-sent events.", {"text/event-stream": None}, (503,)
    ),
    ("POST", "/v1/files"): _Operation(
        "Keep a file, sent as a form with `file` and `purpose`.", _json("File"), (*_BODY, 429, 503), "FileUpload"
    ),
    ("GET", "/v1/files"): _Operation("The caller's files.", _json("Files")),
    ("GET", "/v1/files/{id}"): _Operation("One of them.", _json("File"), (404,)),
    ("DELETE", "/v1/files/{id}"): _Operation("Forget it.", _json("Deleted"), (404,)),
    ("GET", "/v1/files/{id}/content"): _Operation("Its bytes.", {"application/octet-stream": None}, (404,)),
    ("POST", "/v1/batches"): _Operation("Begin a batch.", _json("Batch"), (404, *_BODY, 429, 503), "BatchRequest"),
    ("GET", "/v1/batches"): _Operation("The caller's batches.", _json("Batches")),
    ("GET", "/v1/batches/{id}"): _Operation("One of them.", _json("Batch"), (404,)),
    ("POST", "/v1/batches/{id}/cancel"): _Operation("End it.", _json("Batch"), (404, 409)),
}
_FOLLOW = (("GET", _ONE), ("GET", f"{_ONE}/trace"), ("DELETE", _ONE), ("POST", f"{_ONE}/cancel"))
_WORDS = {499: "The request was cancelled.", 408: "The body did not arrive in time."}
_PARAMETERS: dict[str, Json] = {
    "X-Request-Id": {"pattern": "^[A-Za-z0-9_.:-]{1,64}$", "description": "names the request"},
    "Idempotency-Key": {"pattern": "^[\\x21-\\x7e]{1,255}$", "description": "the same key and body: the same answer"},
}


def document(gateway: Gateway, routes: Iterable[Route]) -> Json:
    """The document of a server with this gateway's limits and keys, and these routes."""
    paths: dict[str, Json] = {}
    keys = bool(gateway.settings.key_digests)
    there = {(method, route.path.replace(":path}", "}")) for route in routes for method in route.methods or ()}
    for (method, path), operation in _OPERATIONS.items():
        if (method, path) not in there:
            continue
        paths.setdefault(path, {})[method.lower()] = {"operationId": _id(method, path)} | _operation(
            path, operation, keys
        )
    uploads = ("POST", "/v1/files") in there
    frames = {"type": "object", "properties": {"recording": media_source(gateway.limits.media, uploads=uploads)}}
    bodies = {
        "ChatCompletionRequest": chat_body(gateway.limits, uploads=uploads),
        "FileUpload": _required({"purpose": {"enum": list(PURPOSES)}, "file": {"type": "string", "format": "binary"}}),
        "BatchRequest": _required(
            {
                "input_file_id": {"type": "string"},
                "endpoint": {"const": ENDPOINT},
                "completion_window": {"const": WINDOW},
            }
        ),
        "FramesRequest": frames | {"required": ["recording"], "additionalProperties": False},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "cascade-runtime",
            "version": cascade_runtime.__version__,
            "description": "OpenAI's chat completions over event recordings and video, answered by a cascade.",
        },
        "paths": paths,
        "components": {
            "schemas": {**bodies, **SCHEMAS},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(path: str, operation: _Operation, keys: bool) -> Json:
    refused = {400, 403, *operation.also} | ({401} if keys and not operation.open else set())
    described: Json = {
        "summary": operation.does,
        "parameters": [*_path_parameters(path), *map(_header, ("X-Request-Id", *operation.headers))],
        "responses": {
            "200": {"description": "as asked", "content": {kind: _schema(name) for kind, name in operation.ok.items()}},
            **{str(status): _refusal(status, operation) for status in sorted(refused)},
        },
    }
    if operation.ok.get("application/json") == "ChatCompletion":
        parameters = {"id": "$response.body#/cascade/request_id"}
        links = {_id(*at): {"operationId": _id(*at), "parameters": parameters} for at in _FOLLOW}
        described["responses"]["200"]["links"] = links
    if operation.body is not None:
        kind = "multipart/form-data" if operation.body == "FileUpload" else "application/json"
        examples = {"ChatCompletionRequest": example_body(), "FramesRequest": {"recording": {"url": EXAMPLE_URL}}}
        shown = {"examples": {"bars": {"value": examples[operation.body]}}} if operation.body in examples else {}
        described["requestBody"] = {"required": True, "content": {kind: {**_schema(operation.body), **shown}}}
    if keys and not operation.open:
        described["security"] = [{"key": []}]
    return described


def _required(properties: Json) -> Json:
    """An object that has all of these; of others none are promised."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def _id(method: str, path: str) -> str:
    """A name for an operation: "get_v1_models_id"."""
    return "_".join([method.lower(), *re.findall(r"[a-z0-9]+", path)])


def _refusal(status: int, operation: _Operation) -> Json:
    description = _WORDS.get(status) or HTTPStatus(status).phrase
    if operation.ok.get("application/json") == "DeepHealth" and status == 503:
        return {"description": description, "content": {"application/json": _schema("DeepHealth")}}
    return {"description": description, "content": {"application/json": _schema("Error")}}


def _schema(name: str | None) -> Json:
    return {"schema": {"$ref": f"#/components/schemas/{name}"} if name else {}}


def _path_parameters(path: str) -> list[Json]:
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}} for name in names
    ]


def _header(name: str) -> Json:
    said = _PARAMETERS[name]
    schema = {"type": "string", "pattern": said["pattern"]}
    return {"name": name, "in": "header", "required": False, "description": said["description"], "schema": schema}
