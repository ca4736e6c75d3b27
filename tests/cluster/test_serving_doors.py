"""Who may ask, how much, and what one key means: everything in front of a pipeline, over the in-process engine."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_bodies import chat_body
from toy_family import toy_recipe, write_toy_family

from cascade_runtime.errors import CapacityError, ConfigError, DeadlineExceeded, RateLimitError, StageError
from cascade_runtime.in_process import InProcess
from cluster.cli import main
from cluster.serving.admission import Admission
from cluster.serving.api_keys import caller_of, read_key_file
from cluster.serving.gateway import Gateway
from cluster.serving.refusals import refusal_of
from cluster.serving.routes import build_app
from cluster.serving.settings import ServerSettings, is_loopback

KEYS = ("key-of-the-first-caller", "key-of-the-second-caller")


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"# two callers\n{KEYS[0]}\n\n{KEYS[1]}\n")
    return path


class Healthy:
    """The vitals of a pipeline without actors, and no other replicas."""

    async def gone(self) -> tuple[str, ...]:
        return ()

    async def stats(self) -> dict[str, dict[str, Any]]:
        return {"light": {"name": "light", "problem": "silent"}}

    async def canary(self) -> dict[str, Any]:
        return {"status": "failed"}

    async def recall(self, caller: str, request_id: str, what: str) -> dict[str, Any] | None:
        return {"id": request_id, "elsewhere": what} if request_id == "there" else None

    async def cancel(self, caller: str, request_id: str) -> bool:
        return request_id == "there"

    async def metrics(self) -> dict[str, str]:
        return {}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> InProcess:
    return InProcess(toy_recipe(write_toy_family(tmp_path_factory.mktemp("toy")), ["noisy"]))


Ask = Callable[..., tuple[int, Any]]


@pytest.fixture
def door(engine: InProcess) -> Callable[..., Ask]:
    """door(settings) -> ask(method, path, body, peer=..., **headers) -> (status, JSON or text)."""

    def opened(settings: ServerSettings) -> Ask:
        gateway = Gateway(settings, engine.engine.recipe, engine)
        app = build_app(gateway, Healthy(), Healthy())

        async def call(
            method: str, path: str, body: Any = None, peer: str = "127.0.0.1", **headers: str
        ) -> tuple[int, Any]:
            named = {"host": "localhost:8000", "content-type": "application/json", **headers}
            scope = {
                "type": "http",
                "method": method,
                "path": path,
                "raw_path": path.encode(),
                "query_string": b"",
                "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in named.items()],
                "client": (peer, 1),
            }
            sent: list[Any] = []

            async def receive() -> dict[str, Any]:
                return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}

            async def send(message: Any) -> None:
                sent.append(message)

            await app(scope, receive, send)
            text = b"".join(message.get("body", b"") for message in sent).decode()
            return sent[0]["status"], json.loads(text) if text.startswith("{") else text

        def ask(*args: Any, **kwargs: Any) -> tuple[int, Any]:
            return asyncio.run(call(*args, **kwargs))

        ask.gateway = gateway  # type: ignore[attr-defined]
        return ask

    return opened


def test_every_path_but_two_wants_a_key_and_keys_do_not_see_one_another(
    door: Callable[..., Ask], key_file: Path
) -> None:
    ask = door(ServerSettings.from_args({"api_key_file": str(key_file)}))
    far = {"peer": "192.0.2.7", "host": "cascade.example"}
    mine, theirs = ({"authorization": f"Bearer {key}"} for key in KEYS)
    for path in ("/v1/models", "/metrics", "/version", "/health/deep", "/v1/cascade/requests/r", "/nothing"):
        for wrong in ({}, {"authorization": "Bearer nonsense"}, {"authorization": f"Basic {KEYS[0]}"}):
            status, refused = ask("GET", path, **far, **wrong)
            assert (status, refused["error"]["code"]) == (401, "invalid_api_key")
    assert ask("GET", "/health", **far)[0] == ask("GET", "/ready", **far)[0] == 200
    status, answer = ask("POST", "/v1/chat/completions", chat_body(max_tokens=3), x_request_id="r", **far, **mine)
    assert status == 200 and answer["usage"]["completion_tokens"] == 3
    assert ask("GET", "/v1/cascade/requests/r", **far, **mine)[1]["status"] == "done"
    assert ask("GET", "/v1/cascade/requests/r", **far, **theirs)[0] == 404


@pytest.mark.parametrize(
    ("peer", "host", "status"),
    [
        ("127.0.0.1", "localhost:8000", 200),
        ("127.0.0.1", "127.0.0.1", 200),
        ("::1", "[::1]:8000", 200),
        ("127.0.0.1", "evil.example:8000", 403),
        ("127.0.0.1", "", 403),
        ("192.0.2.7", "localhost:8000", 403),
    ],
)
def test_without_keys_only_this_machine_is_answered(
    door: Callable[..., Ask], peer: str, host: str, status: int
) -> None:
    assert door(ServerSettings())("GET", "/v1/models", peer=peer, host=host)[0] == status


def test_a_stream_of_the_engine_has_the_tokens_of_each_round(door: Callable[..., Ask]) -> None:
    ask = door(ServerSettings())
    body = chat_body(max_tokens=30, ignore_eos=True, stop="zzz")
    want = ask("POST", "/v1/chat/completions", body)[1]
    status, text = ask("POST", "/v1/chat/completions", body | {"stream": True})
    *events, done, _ = text.split("\n\n")
    _, *rounds, last = [json.loads(event.removeprefix("data: ")) for event in events]
    assert (status, done) == (200, "data: [DONE]") and 2 < len(rounds) < 30
    assert (
        "".join(chunk["choices"][0]["delta"]["content"] for chunk in rounds) == want["choices"][0]["message"]["content"]
    )
    tokens = [token for chunk in rounds for token in chunk["cascade"]["token_ids"]]
    assert tokens == want["cascade"]["token_ids"] == last["cascade"]["token_ids"] and len(tokens) == 30
    spans = [span for chunk in rounds for span in chunk["cascade"]["spans"]]
    by = [span["by"] for span in spans for _ in range(span["start"], span["end"])]
    assert by == [span["by"] for span in want["cascade"]["spans"] for _ in range(span["start"], span["end"])]


def test_what_another_replica_knows_is_found(door: Callable[..., Ask]) -> None:
    ask = door(ServerSettings())
    assert ask("GET", "/v1/cascade/requests/there") == (200, {"id": "there", "elsewhere": "request"})
    assert ask("GET", "/v1/cascade/requests/there/trace") == (200, {"id": "there", "elsewhere": "trace"})
    assert ask("DELETE", "/v1/cascade/requests/there")[0] == 200
    assert ask("DELETE", "/v1/cascade/requests/nowhere")[0] == 404


def test_a_draining_or_failing_server_says_so(door: Callable[..., Ask]) -> None:
    ask = door(ServerSettings())
    ask.gateway.draining = True  # type: ignore[attr-defined]
    status, refused = ask("POST", "/v1/chat/completions", chat_body())
    assert (status, refused["error"]["code"], refused["error"]["retryable"]) == (503, "overloaded", True)
    assert ask("GET", "/ready")[0] == 503 and ask("GET", "/health")[0] == 200
    assert ask("GET", "/health/deep") == (503, {"status": "failed"})
    status, text = ask("GET", "/metrics")
    assert 'cascade:stage_up{stage="light"} 0' in text and 'cascade:http_responses_total{code="503"} 3.0' in text


def test_a_caller_has_limits_of_its_own() -> None:
    admission = Admission(room=3, key_concurrency=2, key_per_minute=4)
    admission.enter("a", 0.0)
    admission.enter("a", 0.0)
    with pytest.raises(RateLimitError, match="2 requests of this key are running"):
        admission.enter("a", 0.0)
    admission.enter("b", 0.0)
    with pytest.raises(CapacityError, match="3 requests are running or waiting"):
        admission.enter("c", 0.0)
    for _ in range(2):
        admission.leave("a")
        admission.enter("a", 0.0)
    admission.leave("a")
    with pytest.raises(RateLimitError, match="4 requests of this key in a minute") as caught:
        admission.enter("a", 0.0)
    assert caught.value.retry_after_s == 15.0
    refusal = refusal_of(caught.value)
    assert (refusal.status, refusal.all_headers()["Retry-After"]) == (429, "15")
    admission.enter("a", 15.0)
    assert admission.inside == 3


def test_errors_tell_nothing_of_the_inside() -> None:
    refusal = refusal_of(StageError("heavy", "r", "its process has died: 10.0.0.7:4411 /srv/models"))
    assert (refusal.status, refusal.code, refusal.message) == (
        500,
        "stage_failed",
        "stage 'heavy' failed on this request",
    )
    assert refusal_of(DeadlineExceeded("stage x at 10.0.0.7")).message == "no answer before the request's deadline"


def test_keys_are_read_from_a_file_and_kept_as_digests(key_file: Path, tmp_path: Path) -> None:
    digests = read_key_file(key_file)
    assert len(digests) == 2 and not any(key in digest for key in KEYS for digest in digests)
    assert caller_of(f"bearer {KEYS[1]}", digests) == digests[1][:12]
    assert caller_of(f"Bearer {KEYS[1]}x", digests) is None and caller_of("", digests) is None
    for text in ("short\n", "", "a key with some blanks\n"):
        (tmp_path / "bad").write_text(text)
        with pytest.raises(ConfigError) as caught:
            read_key_file(tmp_path / "bad")
        assert not text.strip() or text.strip() not in str(caught.value)


def test_a_public_address_needs_a_key(key_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "heavy", "--host", "0.0.0.0"]) == 2
    assert "host: got '0.0.0.0'" in capsys.readouterr().err
    ServerSettings.from_args({"api_key_file": key_file}).check_address("0.0.0.0")
    for host in ("127.0.0.1", "localhost", "::1", "[::1]", "::ffff:127.0.0.1", "127.9.9.9"):
        assert is_loopback(host)
    for host in ("0.0.0.0", "::", "10.0.0.1", "localhost.evil.example", "", "127.0.0.1.nip.io"):
        assert not is_loopback(host)


def test_a_port_that_is_taken_is_told_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", "heavy", "--port", port]) == 2
    assert f"--port: got {port}; allowed: a port that is free on 127.0.0.1" in capsys.readouterr().err


def test_settings_come_as_text_too_and_unknown_ones_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASCADE_RECIPE", "heavy")
    given = ServerSettings.from_args({"max_queue": "3", "overrides": "cascade.slots=4,cascade.max_len=512"})
    assert (given.recipe, given.max_queue, given.load_recipe().cascade.slots) == ("heavy", 3, 4)
    assert ServerSettings.from_args({"recipe": "light_heavy"}).recipe == "light_heavy"
    listed = ServerSettings.from_args({"overrides": "cascade.num_draft_tokens=[4,6],cascade.levels=[]"}).overrides
    assert listed == ("cascade.num_draft_tokens=[4,6]", "cascade.levels=[]")
    for wrong in ({"max_queue": "many"}, {"max_queue": 49}, {"port": 8000}, {"media_dir": "/nowhere"}):
        with pytest.raises(ConfigError) as caught:
            ServerSettings.from_args(wrong)
        assert caught.value.field in wrong


# -- runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tls-cert", "CERT"], "--tls-key: got None; allowed: a file, together with --tls-cert"),
        (["--tls-key", "CERT"], "--tls-key: got "),
        (["--tls-cert", "CERT", "--tls-key", "CERT"], "a certificate and its key, without password"),
        (["--ssl-certfile", "/nowhere", "--ssl-keyfile", "/nowhere"], "No such file"),
    ],
)
def test_a_wrong_certificate_is_told_before_anything_starts(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cert.pem").write_text("nonsense")
    assert main(["serve", "heavy", *(option.replace("CERT", str(tmp_path / "cert.pem")) for option in options)]) == 2
    assert said in capsys.readouterr().err
