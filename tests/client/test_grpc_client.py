"""The client over gRPC, against the real server before the engine: the same answers, errors and ends as at home."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from client.certificate import write_certificate
from client.grpc_servers import Served, free_port, grpc_server, until
from client.scripted import Scripted
from toy_family import toy_events, toy_recipe, write_toy_family

from cascade_runtime.api import Answer, Piece
from cascade_runtime.client import CascadeClient
from cascade_runtime.config import Recipe, SamplingParams
from cascade_runtime.errors import (
    AccessError,
    CapacityError,
    ConfigError,
    DeadlineExceeded,
    InputError,
    NotFound,
    RateLimitError,
    RemoteError,
    StageError,
)
from cascade_runtime.in_process import InProcess
from cluster.serving.api_keys import digest

SAMPLING = SamplingParams(max_tokens=20, temperature=0.8, seed=5, stop=("zzz",))
KEY = "the-key-of-the-only-caller"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return toy_recipe(write_toy_family(tmp_path_factory.mktemp("toy")), ["noisy"])


@pytest.fixture(scope="module")
def engine(recipe: Recipe) -> InProcess:
    return InProcess(recipe)


@pytest.fixture(scope="module")
def server(recipe: Recipe, engine: InProcess) -> Iterator[Served]:
    with grpc_server(recipe, engine, max_tokens=900) as served:
        yield served


@pytest.fixture(scope="module")
def remote(server: Served) -> Iterator[CascadeClient]:
    with CascadeClient(f"grpc://{server.address}") as client:
        yield client


@pytest.fixture(scope="module")
def local(recipe: Recipe) -> Iterator[CascadeClient]:
    with CascadeClient(recipe=recipe) as client:
        yield client


def test_an_answer_from_afar_says_all_that_one_from_here_says(remote: CascadeClient, local: CascadeClient) -> None:
    for seed in range(3):
        for speculate in (True, False):
            far, near = (
                client.generate(toy_events(seed), "What moves?", sampling=SAMPLING, speculate=speculate)
                for client in (remote, local)
            )
            for name in ("text", "token_ids", "pieces", "finish_reason", "levels", "masks", "mode", "edges", "notes"):
                assert getattr(far, name) == getattr(near, name), name
            assert (far.produced_by, far.accepted_by) == (near.produced_by, near.accepted_by)
            assert (far.target_passes, far.prompt_tokens) == (near.target_passes, near.prompt_tokens)
            assert far.rejections == near.rejections
            assert near.gate is None or {key: (far.gate or {})[key] for key in near.gate} == near.gate
            assert (far.gate is None) == (near.gate is None)
            assert [span[:2] for span in far.timings.spans] == [span[:2] for span in near.timings.spans]
    assert any(far.rejections for far in [remote.generate(toy_events(), "What moves?", sampling=SAMPLING)])


def test_a_stream_from_afar_is_the_stream_from_here(remote: CascadeClient, local: CascadeClient) -> None:
    *far, answer = remote.stream(toy_events(1), "What moves?", sampling=SAMPLING)
    *near, expected = local.stream(toy_events(1), "What moves?", sampling=SAMPLING)
    assert isinstance(answer, Answer) and isinstance(expected, Answer) and answer.token_ids == expected.token_ids
    assert [(str(p), p.tokens, p.masks, p.words) for p in far if isinstance(p, Piece)] == [
        (str(p), p.tokens, p.masks, p.words) for p in near if isinstance(p, Piece)
    ]
    assert len(far) > 2


def test_many_are_answered_in_order_with_errors_in_place(remote: CascadeClient, local: CascadeClient) -> None:
    questions = ["What moves?", "x " * 400, "Where?"]
    sampling = SamplingParams(max_tokens=5)
    far = remote.generate_many([toy_events()] * 3, questions, sampling=sampling, progress=False)
    assert isinstance(far[1], InputError) and "prompt" in str(far[1])
    for index in (0, 2):
        near = local.generate(toy_events(), questions[index], sampling=sampling)
        told = far[index]
        assert isinstance(told, Answer) and told.token_ids == near.token_ids


def test_leaving_a_stream_or_cancelling_it_frees_its_place(recipe: Recipe) -> None:
    transport = Scripted()
    transport.go.clear()
    with grpc_server(recipe, transport) as served, CascadeClient(f"grpc://{served.address}") as client:
        stream = client.stream(toy_events(), "What moves?")
        assert next(stream) == "a" and served.inside == 1
        stream.close()  # type: ignore[attr-defined]
        until(lambda: served.inside == 0 and transport.ended == 1)
        with pytest.raises(DeadlineExceeded):
            CascadeClient(f"grpc://{served.address}", timeout=0.3).generate(toy_events(), "What moves?")
        until(lambda: served.inside == 0 and transport.ended == 2)


def test_models_health_and_traces(remote: CascadeClient, local: CascadeClient) -> None:
    (model,), (here,) = remote.models(), local.models()
    assert (model.name, model.levels) == ("cascade", here.levels)
    assert remote.health() == local.health()
    answer = remote.generate(toy_events(), "What moves?", sampling=SAMPLING)
    events = remote.trace(answer.request_id)["traceEvents"]
    assert [event["name"] for event in events] == [
        event["name"] for event in answer.timings.chrome_trace()["traceEvents"]
    ]
    assert {"encode", "gate"} <= {event["name"] for event in events}
    with pytest.raises(NotFound):
        remote.trace("nobody")


def test_what_the_server_refuses_comes_as_the_error_it_is(remote: CascadeClient, recipe: Recipe) -> None:
    with pytest.raises(InputError, match="max_tokens: got 901; allowed: an integer from 1 to 900") as caught:
        remote.generate(toy_events(), "What moves?", sampling=SamplingParams(max_tokens=901))
    assert caught.value.field == "max_tokens"
    for error, kind in (
        (StageError("light", "r", "at 10.0.0.7"), StageError),
        (CapacityError("all is full"), CapacityError),
        (RateLimitError("too many", 3.0), RateLimitError),
    ):
        with grpc_server(recipe, Scripted(error)) as served:
            with CascadeClient(f"grpc://{served.address}", max_retries=0) as client, pytest.raises(kind) as told:
                client.generate(toy_events(), "What moves?")
            assert "10.0.0.7" not in str(told.value) and told.value.request_id


def test_what_may_be_asked_again_is_with_the_same_id_and_only_so_often(recipe: Recipe) -> None:
    transport = Scripted(CapacityError("all is full"))
    with (
        grpc_server(recipe, transport) as served,
        CascadeClient(f"grpc://{served.address}", max_retries=1, timeout=10) as client,
    ):
        with pytest.raises(CapacityError):
            client.generate(toy_events(), "What moves?")
        assert transport.started == 2 and len(served.gateway._ledger._entries) == 1
        stream = client.stream(toy_events(), "What moves?")
        assert next(stream) == "a"
        with pytest.raises(CapacityError):  # asked for once more: what had been told is not told again
            next(stream)
        assert transport.started == 4
    begun = free_port()
    with CascadeClient(f"grpc://127.0.0.1:{begun}", max_retries=1) as client, pytest.raises(RemoteError) as caught:
        client.generate(toy_events(), "What moves?")
    assert caught.value.retryable and caught.value.request_id


def test_a_key_opens_what_is_closed_without(recipe: Recipe) -> None:
    with grpc_server(recipe, Scripted(), key_digests=(digest(KEY),)) as served:
        address = f"grpc://{served.address}"
        with CascadeClient(address, api_key=KEY) as client:
            assert client.generate(toy_events(), "What moves?").text == "ab" and client.models()
            (reply,) = _one_window(client)
            assert isinstance(reply.outcome, Answer)
        for key in (None, "another-key-of-somebody"):
            with CascadeClient(address, api_key=key) as client:
                for call in (lambda: client.generate(toy_events(), "What moves?"), client.models):
                    with pytest.raises(AccessError, match="API key"):
                        call()
                with pytest.raises(AccessError):
                    _one_window(client)
                assert client.health().ready


def _one_window(client: CascadeClient) -> list:
    with client.session("What moves?") as session:
        session.send(toy_events())
        session.finish()
        return list(session)


def test_tls_is_spoken_and_a_stranger_s_certificate_refused(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cert, key = map(str, write_certificate(tmp_path))
    with grpc_server(recipe, Scripted(), grpc_certfile=cert, grpc_keyfile=key) as served:
        monkeypatch.setenv("SSL_CERT_FILE", cert)
        with CascadeClient(f"grpcs://{served.address}") as client:
            assert client.generate(toy_events(), "What moves?").text == "ab"
        monkeypatch.delenv("SSL_CERT_FILE")
        for address in (f"grpcs://{served.address}", f"grpc://{served.address}"):
            with CascadeClient(address, max_retries=0, timeout=10) as client, pytest.raises(RemoteError):
                client.generate(toy_events(), "What moves?")
    with (
        pytest.raises(ConfigError, match="grpc_certfile"),
        grpc_server(recipe, Scripted(), grpc_certfile=key, grpc_keyfile=cert),
    ):
        pass
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="SSL_CERT_FILE"):
        CascadeClient(f"grpcs://{served.address}")


@pytest.mark.parametrize("target", ["grpc://host:1/path", "grpc://", "grpc://a:b@host:1", "grpc://host:99999"])
def test_addresses_that_cannot_be_meant_are_refused(target: str) -> None:
    with pytest.raises(ConfigError, match="target"):
        CascadeClient(target)


def test_a_server_that_speaks_something_else_is_a_typed_error() -> None:
    """One that has no such method, and one whose answers are none."""
    from concurrent.futures import ThreadPoolExecutor

    port = free_port()
    lies = grpc.unary_unary_rpc_method_handler(lambda request, context: b"\x08\x96\x01")
    for handlers in ({}, {"Generate": lies, "Models": lies, "Trace": lies}):
        other = grpc.server(ThreadPoolExecutor(2))
        other.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("cascade.v1.Cascade", handlers),))
        other.add_insecure_port(f"127.0.0.1:{port}")
        other.start()
        with CascadeClient(f"grpc://127.0.0.1:{port}", timeout=10) as client:
            with pytest.raises(RemoteError):
                client.generate(toy_events(), "What moves?")
            with pytest.raises(RemoteError):
                client.trace("r")
        other.stop(0).wait()
