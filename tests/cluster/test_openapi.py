"""The OpenAPI document is the API: its routes, the validator's bounds, and what real answers look like."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema
import pytest
from chat_bodies import chat_body
from toy_family import toy_recipe, write_toy_family

from cascade_runtime.errors import InputError
from cascade_runtime.in_process import InProcess
from cluster.serving import chat_request, openapi
from cluster.serving.chat_request import parse_chat
from cluster.serving.chat_schema import example_body
from cluster.serving.gateway import Gateway
from cluster.serving.page import page_routes
from cluster.serving.routes import build_app
from cluster.serving.settings import ServerSettings


class Vitals:
    """A pipeline that is well, and no other replica."""

    async def gone(self) -> tuple[str, ...]:
        return ()

    async def stats(self) -> dict[str, dict[str, Any]]:
        return {"light": {"name": "light", "problem": "silent"}}

    async def canary(self) -> dict[str, Any]:
        return {"status": "ok", "ms": 1.5, "stages": {"light": "ok"}}

    async def recall(self, caller: str, request_id: str, what: str) -> dict[str, Any] | None:
        return None

    async def cancel(self, caller: str, request_id: str) -> bool:
        return request_id == "running"

    async def metrics(self) -> dict[str, str]:
        return {}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    engine = InProcess(toy_recipe(write_toy_family(tmp_path_factory.mktemp("toy")), ["noisy"]))
    yield Gateway(ServerSettings(max_tokens=200), engine.engine.recipe, engine)


def routes(gateway: Gateway) -> Any:
    return build_app(gateway, Vitals(), Vitals(), page_routes(gateway)).routes


@pytest.fixture(scope="module")
def document(gateway: Gateway) -> dict[str, Any]:
    return openapi.document(gateway, routes(gateway))


Ask = Callable[..., tuple[int, str, bytes]]


@pytest.fixture(scope="module")
def ask(gateway: Gateway) -> Ask:
    app = build_app(gateway, Vitals(), Vitals(), page_routes(gateway))

    def asked(method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str, bytes]:
        named = {"host": "localhost", "content-type": "application/json", **headers}
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in named.items()],
            "client": ("127.0.0.1", 1),
        }
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"" if body is None else json.dumps(body).encode()}

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.run(app(scope, receive, send))
        head = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        asked.headers = head  # type: ignore[attr-defined]
        return sent[0]["status"], head["content-type"], b"".join(m.get("body", b"") for m in sent)

    return asked


def schema_of(document: dict[str, Any], name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator({"$ref": f"#/components/schemas/{name}", **document})


def test_every_route_is_described_and_nothing_else(gateway: Gateway, document: dict[str, Any]) -> None:
    there = {
        (method, route.path.replace(":path}", "}")) for route in routes(gateway) for method in route.methods - {"HEAD"}
    }
    said = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert said == there


def test_what_is_answered_is_what_the_document_says(ask: Ask, document: dict[str, Any]) -> None:
    seen: set[tuple[str, str, int]] = set()

    def check(method: str, path: str, body: Any = None, template: str = "", **headers: str) -> Any:
        status, kind, raw = ask(method, path, body, **headers)
        said = document["paths"][template or path][method.lower()]["responses"][str(status)]["content"]
        seen.add((method, template or path, status))
        schema = said[kind.partition(";")[0]]["schema"]
        if not kind.startswith("application/json"):
            return raw
        jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(json.loads(raw))
        return json.loads(raw)

    one = "/v1/cascade/requests/{id}"
    answer = check("POST", "/v1/chat/completions", example_body(), **{"x-request-id": "mine"})
    assert answer["usage"]["completion_tokens"] and answer["cascade"]["input"]["events"] == 64
    assert b"[DONE]" in check("POST", "/v1/chat/completions", example_body() | {"stream": True})
    assert check("POST", "/v1/chat/completions", {})["error"]["param"] == "messages"
    assert check("POST", "/v1/chat/completions", chat_body(model="x"))["error"]["code"] == "model_not_found"
    assert check("POST", "/v1/chat/completions", {}, **{"content-type": "text/plain"})["error"]["code"]
    assert check("GET", "/v1/cascade/requests/mine", template=one)["status"] == "done"
    assert check("GET", "/v1/cascade/requests/mine/trace", template=f"{one}/trace")["traceEvents"]
    for method, path, template in (
        ("GET", "/v1/cascade/requests/none", one),
        ("DELETE", "/v1/cascade/requests/running", one),
        ("DELETE", "/v1/cascade/requests/none", one),
        ("POST", "/v1/cascade/requests/running/cancel", f"{one}/cancel"),
        ("GET", "/v1/models/cascade", "/v1/models/{id}"),
        ("GET", "/v1/models/other", "/v1/models/{id}"),
        ("GET", "/page/page.css", "/page/{name}"),
        ("GET", "/page/none", "/page/{name}"),
        ("GET", "/v1/cascade/samples/bar", "/v1/cascade/samples/{name}"),
        ("GET", "/v1/cascade/samples/none", "/v1/cascade/samples/{name}"),
    ):
        check(method, path, template=template)
    for path in ("/v1/models", "/health", "/ready", "/health/deep", "/metrics", "/version", "/openapi.json", "/"):
        assert check("GET", path) and check("GET", path, **{"x-request-id": "a b"})["error"]["param"] == "X-Request-Id"
    check("GET", "/v1/cascade/samples")
    recording = example_body()["messages"][0]["content"][0]["events_url"]
    assert check("POST", "/v1/cascade/frames", {"recording": recording})["facts"]["events"] == 64
    assert check("POST", "/v1/cascade/frames", {})["error"]["param"] == "recording"
    assert check("POST", "/v1/cascade/frames", {"recording": recording, "size": 3})["error"]["param"] == "size"
    endless = {("GET", "/v1/cascade/pipeline")}
    assert {(method, path) for method, path, status in seen if status == 200} | endless == {
        (method.upper(), path) for path, item in document["paths"].items() for method in item
    }


def test_a_method_that_a_path_has_not_is_told_all_that_it_has(ask: Ask) -> None:
    for path, allowed in (("/v1/cascade/requests/r", "DELETE, GET, HEAD"), ("/v1/chat/completions", "POST")):
        status, _, _ = ask("PATCH", path)
        assert (status, ask.headers["allow"]) == (405, allowed)  # type: ignore[attr-defined]


def test_the_body_s_fields_are_the_validator_s(document: dict[str, Any]) -> None:
    said = document["components"]["schemas"]["ChatCompletionRequest"]["properties"]
    assert set(said) == {*chat_request._USED, *chat_request._IGNORED, *chat_request._NEUTRAL}


def accepted(gateway: Gateway, body: Any) -> bool:
    try:
        parse_chat(body, gateway.limits)
    except InputError:
        return False
    return True


@pytest.mark.parametrize(
    ("fields", "good"),
    [
        *(({"temperature": value}, good) for value, good in ((0, True), (10, True), (-0.1, False), (10.5, False))),
        *(({"top_p": value}, good) for value, good in ((1, True), (0.001, True), (0, False), (1.01, False))),
        *(({"top_k": value}, good) for value, good in ((-1, True), (10**6, True), (-2, False), (10**6 + 1, False))),
        *(({"seed": value}, good) for value, good in ((2**64 - 1, True), (2**64, False), (-1, False))),
        *(({"max_tokens": value}, good) for value, good in ((1, True), (200, True), (0, False), (201, False))),
        *(({"stop": value}, good) for value, good in (("a", True), ([], True), (["a"] * 9, False), ("", False))),
        *(({"stop": value}, good) for value, good in (("a" * 64, True), ("a" * 65, False), ([1], False))),
        *(({"n": value}, good) for value, good in ((1, True), (2, False), (None, True))),
        *(({"tools": value}, good) for value, good in (([], True), ([{}], False))),
        *(({"prediction": value}, good) for value, good in ((None, True), ({}, False))),
        *(({"user": value}, True) for value in ("me", None, 3)),
        *(({"ignore_eos": value}, good) for value, good in ((True, True), (1, False))),
        *(({"stream": value}, good) for value, good in ((True, True), (None, True), ("yes", False))),
        *(
            ({"stream": True, "stream_options": value}, good)
            for value, good in (
                ({"include_usage": True}, True),
                ({"include_usage": "no"}, False),
                ({"include_obfuscation": False}, True),
                ({"include_obfuscation": 0}, False),
                ({"continuous_usage_stats": True}, True),
                ({"continuous_usage_stats": 0}, False),
                ({"x": 1}, False),
            )
        ),
        *(
            ({"cascade": value}, good)
            for value, good in (
                ({}, True),
                ({"deadline_ms": 1}, True),
                ({"deadline_ms": 0}, False),
                ({"deadline_ms": 10**9}, False),
                ({"speculate": 1}, False),
                ({"clip": None}, True),
                ({"clip": {"t_end_us": 2**62}}, True),
                ({"clip": {}}, False),
                ({"clip": {"t_end_us": 2**62 + 1}}, False),
                ({"speed": 1}, False),
            )
        ),
        *(
            ({"source": value}, good)
            for value, good in (
                ({"fps": 0.1}, True),
                ({"fps": 0.05}, False),
                ({"width": 128, "height": 96}, True),
                ({"width": 0, "height": 96}, False),
                ({"format": "arrow"}, True),
                ({"format": "hdf5"}, False),
                ({"path": "x"}, False),
            )
        ),
        ({"model": "cascade"}, True),
        ({"model": "gpt-4"}, False),
        ({"foo": 1}, False),
        ({"kind": "image_url"}, False),
    ],
)
def test_the_schema_and_the_validator_agree(
    gateway: Gateway, document: dict[str, Any], fields: dict[str, Any], good: bool
) -> None:
    body = chat_body(**fields)
    assert schema_of(document, "ChatCompletionRequest").is_valid(body) == good == accepted(gateway, body)


def test_with_keys_the_document_says_where_they_are_wanted(gateway: Gateway) -> None:
    keyed = Gateway(ServerSettings(key_digests=("0" * 64,)), gateway.recipe, gateway._transport)
    paths = openapi.document(keyed, routes(gateway))["paths"]
    unlocked = {path for path, item in paths.items() for operation in item.values() if "security" not in operation}
    assert unlocked == {"/", "/health", "/ready", "/page/{name}"}
