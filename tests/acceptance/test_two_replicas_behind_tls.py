"""`cascade serve` with all its doors open: two whole pipelines, HTTPS and gRPC with TLS, API keys; plain clients.

Which replica a call meets is chance: Serve takes one of two, the kernel one by the client's port. That one of them is
never met by 24 requests or 16 connections happens once in 2^15 runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from acceptance.served import Served, free_port, messages, served
from acceptance.turns import Turns
from client.certificate import write_certificate
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.json_format import MessageToDict
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from cascade_runtime.api import Answer
from cascade_runtime.client import CascadeClient
from cascade_runtime.config import SamplingParams, load_recipe
from cascade_runtime.errors import AccessError, RemoteError
from cascade_runtime.proto import cascade_pb2 as wire
from cascade_runtime.proto.cascade_pb2_grpc import CascadeStub
from cascade_runtime.training.scenes import simulate_scene

pytestmark = pytest.mark.skipif("CASCADE_ACCEPTANCE" not in os.environ, reason="heavy: set CASCADE_ACCEPTANCE=1")
KEY, OTHER = "sk-of-the-one-who-asks", "sk-of-somebody-else"
SLOTS = 2
QUESTION = messages()[0]["content"][1]["text"]
SHORT = SamplingParams(max_tokens=24)
ENDLESS = {"messages": messages(), "max_tokens": 900, "ignore_eos": True, "cascade": {"speculate": False}}


@dataclass(frozen=True)
class Doors:
    """The server over HTTPS, where it answers over gRPC, and the answer that it should give to `QUESTION`."""

    http: Served
    grpc_port: int
    certificate: bytes
    expected: Answer

    @property
    def grpc_url(self) -> str:
        return f"grpcs://127.0.0.1:{self.grpc_port}"

    @contextlib.contextmanager
    def channel(self) -> Iterator[grpc.Channel]:
        """A connection of its own: gRPC would share one among the channels of a process."""
        own = (("grpc.use_local_subchannel_pool", 1),)
        trusted = grpc.ssl_channel_credentials(self.certificate)
        with grpc.secure_channel(f"127.0.0.1:{self.grpc_port}", trusted, own) as channel:
            yield channel


@pytest.fixture(scope="module")
def doors(turns: Turns, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    turns.end()
    folder = tmp_path_factory.mktemp("doors")
    certificate, key = write_certificate(folder)
    (folder / "keys").write_text(f"{KEY}\n{OTHER}\n")
    grpc_port = free_port()
    options = [
        *("--replicas", "2", "--set", f"cascade.slots={SLOTS}", "--api-key-file", str(folder / "keys")),
        *("--tls-cert", str(certificate), "--tls-key", str(key), "--grpc-port", str(grpc_port)),
    ]
    with CascadeClient(recipe=load_recipe("light_heavy")) as client:
        expected = client.generate(simulate_scene(seed=9).events, QUESTION, sampling=SHORT)
    os.environ["SSL_CERT_FILE"] = str(certificate)  # what the project's clients trust, in place of the usual list
    try:
        with served(*options, certificate=certificate, key=KEY) as server:
            yield Doors(server, grpc_port, certificate.read_bytes(), expected)
    finally:
        del os.environ["SSL_CERT_FILE"]


def bearer(key: str = KEY) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),)


def asked(name: str, **fields: Any) -> wire.GenerateRequest:
    recording = {"data": simulate_scene(seed=9).events.to_ipc_bytes("zstd")}
    sampling = {"max_tokens": SHORT.max_tokens, **fields.pop("sampling", {})}
    return wire.GenerateRequest(request_id=name, question=QUESTION, recording=recording, sampling=sampling, **fields)  # type: ignore[arg-type]


def free_slots(doors: Doors) -> int:
    return doors.http.metric("cascade:stage_free_slots")


ALL_SLOTS = 2 * 2 * SLOTS  # of two replicas' two language stages


# -- TLS and keys ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("over", ["grpcs", "https"])
def test_the_project_s_client_with_a_key_gets_the_engine_s_tokens(doors: Doors, over: str) -> None:
    url = doors.grpc_url if over == "grpcs" else doors.http.url
    with CascadeClient(url, api_key=KEY) as client:
        answer = client.generate(simulate_scene(seed=9).events, QUESTION, sampling=SHORT)
        assert answer.token_ids == doors.expected.token_ids
        *pieces, last = client.stream(simulate_scene(seed=9).events, QUESTION, sampling=SHORT)
        assert isinstance(last, Answer) and last.token_ids == answer.token_ids
        assert "".join(pieces) == last.text  # type: ignore[arg-type]
        assert client.trace(answer.request_id)["traceEvents"] and client.health().ready and client.models()
        with client.session(QUESTION, sampling=SHORT) as session:
            session.send(simulate_scene(seed=9).events)
            session.finish()
            (reply,) = list(session)
        assert isinstance(reply.outcome, Answer) and reply.outcome.token_ids == answer.token_ids


@pytest.mark.parametrize("over", ["grpcs", "https"])
def test_without_the_key_or_the_certificate_nobody_is_answered(
    doors: Doors, over: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = doors.grpc_url if over == "grpcs" else doors.http.url
    for key in (None, "sk-of-nobody-at-all"):
        with CascadeClient(url, api_key=key) as client, pytest.raises(AccessError):
            client.generate(simulate_scene(seed=9).events, QUESTION, sampling=SHORT)
    monkeypatch.delenv("SSL_CERT_FILE")
    for wrong in (url, url.replace("s://", "://")):  # a stranger's certificate; in the clear
        with CascadeClient(wrong, api_key=KEY, max_retries=0, timeout=20) as client, pytest.raises(RemoteError):
            client.generate(simulate_scene(seed=9).events, QUESTION, sampling=SHORT)


def test_a_plain_grpc_client_needs_no_file_of_ours(doors: Doors) -> None:
    """Health without a key, and with one a call made of what reflection tells alone."""
    with doors.channel() as channel:
        status = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="cascade.v1.Cascade"))
        assert status.status == health_pb2.HealthCheckResponse.SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            next(reflection.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")])))
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED  # type: ignore[attr-defined]

        def told(**request: str) -> Any:
            wanted = iter([reflection_pb2.ServerReflectionRequest(**request)])
            return next(reflection.ServerReflectionInfo(wanted, metadata=bearer()))

        services = {service.name for service in told(list_services="").list_services_response.service}
        assert {"cascade.v1.Cascade", "grpc.health.v1.Health"} <= services
        pool = descriptor_pool.DescriptorPool()
        found = told(file_containing_symbol="cascade.v1.Cascade").file_descriptor_response.file_descriptor_proto
        for data in found:
            pool.Add(descriptor_pb2.FileDescriptorProto.FromString(data))
        method = pool.FindServiceByName("cascade.v1.Cascade").methods_by_name["Generate"]
        request = message_factory.GetMessageClass(method.input_type)()
        request.question, request.sampling.max_tokens = QUESTION, SHORT.max_tokens
        request.recording.data = simulate_scene(seed=9).events.to_ipc_bytes()
        call = channel.unary_unary(
            "/cascade.v1.Cascade/Generate",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
        )
        answer = call(request, metadata=bearer(), timeout=120)
        assert list(answer.cascade.token_ids) == list(doors.expected.token_ids)
        assert MessageToDict(answer)["metrics"]["speculativeDecoding"]["numDraftTokens"] > 0


# -- two replicas ----------------------------------------------------------------------------------------------------


def test_both_replicas_answer_and_each_finds_what_the_other_did(doors: Doors) -> None:
    before = [doors.http.metric("vllm:request_success_total", replica=str(rank)) for rank in range(2)]
    expected = list(doors.expected.token_ids)
    body = {"messages": messages(), "max_tokens": SHORT.max_tokens}

    def over_http(number: int) -> list[int]:
        status, answer = doors.http.chat(body, X_Request_Id=f"http-{number}")
        assert status == 200, answer
        return answer["cascade"]["token_ids"]

    def over_grpc(number: int) -> list[int]:
        with doors.channel() as channel:
            return list(CascadeStub(channel).Generate(asked(f"grpc-{number}"), metadata=bearer()).cascade.token_ids)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(over_http, range(24))) == [expected] * 24
        assert list(pool.map(over_grpc, range(16))) == [expected] * 16
    after = [doors.http.metric("vllm:request_success_total", replica=str(rank)) for rank in range(2)]
    gained = [now - then for now, then in zip(after, before, strict=True)]
    print(f"\nanswers of the two replicas: {gained}")
    assert sum(gained) == 40 and min(gained) > 0
    names = [f"http-{number}" for number in range(24)] + [f"grpc-{number}" for number in range(16)]
    with doors.channel() as channel:
        for name in names:
            status, trace = doors.http.get(f"/v1/cascade/requests/{name}/trace")
            assert status == 200 and json.loads(trace)["traceEvents"], name
            reply = CascadeStub(channel).Trace(wire.RequestName(request_id=name), metadata=bearer())
            assert json.loads(reply.json) == json.loads(trace)
            status, entry = doors.http.get(f"/v1/cascade/requests/{name}")
            assert json.loads(entry)["cascade"]["token_ids"] == expected
        with pytest.raises(grpc.RpcError, match="no such request"):  # of another key
            CascadeStub(channel).Trace(wire.RequestName(request_id="http-0"), metadata=bearer(OTHER))


@pytest.mark.parametrize("how", ["http stream", "http whole", "grpc stream", "grpc whole"])
def test_a_client_that_goes_frees_its_slot_wherever_it_was(doors: Doors, how: str) -> None:
    """As many as there are slots: whether they run or, by chance, wait, they leave nothing behind."""
    doors.http.until(lambda: free_slots(doors) == ALL_SLOTS)
    before = doors.http.metric("cascade:num_requests_cancelled_total")
    names = [f"{how.replace(' ', '-')}-{number}" for number in range(2 * SLOTS)]
    sampling = {"max_tokens": 900, "ignore_eos": True}
    with contextlib.ExitStack() as stack:
        leave = []
        for name in names:
            if how.startswith("http"):
                body = ENDLESS | {"stream": how == "http stream"}
                leave.append(doors.http.opened(body, X_Request_Id=name).close)
            else:
                stub = CascadeStub(stack.enter_context(doors.channel()))
                request = asked(name, sampling=sampling, speculate=False)
                call = stub.GenerateStream if how == "grpc stream" else stub.Generate.future
                leave.append(call(request, metadata=bearer()).cancel)
        inside = ("vllm:num_requests_running", "vllm:num_requests_waiting")
        doors.http.until(lambda: sum(map(doors.http.metric, inside)) == 2 * SLOTS)
        for go in leave:
            go()
        doors.http.until(lambda: doors.http.metric("cascade:num_requests_cancelled_total") == before + 2 * SLOTS)
        doors.http.until(lambda: free_slots(doors) == ALL_SLOTS)
    told = [json.loads(doors.http.get(f"/v1/cascade/requests/{name}")[1])["status"] for name in names]
    assert told == ["cancelled"] * len(names)


def test_a_request_is_cancelled_by_its_id_through_any_replica_and_door(doors: Doors) -> None:
    with ThreadPoolExecutor(8) as pool, doors.channel() as channel:
        for number in range(8):
            name = f"to-cancel-{number}"
            running = pool.submit(doors.http.chat, ENDLESS, X_Request_Id=name)
            doors.http.until(lambda: doors.http.metric("vllm:num_requests_running") == 1)
            if number % 2:
                CascadeStub(channel).Cancel(wire.RequestName(request_id=name), metadata=bearer())
            else:
                status, told = doors.http.call("DELETE", f"/v1/cascade/requests/{name}")
                assert (status, json.loads(told)["cancelled"]) == (200, True)
            status, refused = running.result(60)
            assert (status, refused["error"]["code"]) == (499, "cancelled")
            doors.http.until(lambda: free_slots(doors) == ALL_SLOTS)


def test_a_full_replica_is_not_all_there_is(doors: Doors) -> None:
    """Twice as many at a time as one replica has slots, over HTTP: both work at once."""
    body = {"messages": messages(), "max_tokens": 200, "ignore_eos": True, "cascade": {"speculate": False}}
    with ThreadPoolExecutor(2 * SLOTS) as pool:
        begun = time.monotonic()
        running = [pool.submit(doors.http.chat, body) for _ in range(2 * SLOTS)]
        most = {0: 0, 1: 0}
        while not all(one.done() for one in running) and time.monotonic() - begun < 120:
            for rank in most:
                now = doors.http.metric("vllm:num_requests_running", replica=str(rank))
                most[rank] = max(most[rank], now)
        assert [one.result()[0] for one in running] == [200] * 2 * SLOTS
    assert min(most.values()) > 0, most


def test_a_server_that_is_stopped_answers_who_is_inside_and_tells_others_when_to_come_back(doors: Doors) -> None:
    """The last test of this server."""
    body = {"messages": messages(), "max_tokens": 300, "ignore_eos": True, "cascade": {"speculate": False}}
    short = {"messages": messages(), "max_tokens": 1}
    assert doors.http.pid is not None
    with ThreadPoolExecutor(2) as pool:
        inside = [pool.submit(doors.http.chat, body) for _ in range(2)]
        doors.http.until(lambda: doors.http.metric("vllm:num_requests_running") == 2)
        os.kill(doors.http.pid, signal.SIGTERM)
        end = time.monotonic() + 60
        while (told := doors.http.chat(short))[0] == 200:
            assert time.monotonic() < end
        assert not any(one.done() for one in inside)
        assert (told[0], told[1]["error"]["message"], told[1]["error"]["retryable"]) == (
            503,
            "the server is draining",
            True,
        )
        answers = [one.result() for one in inside]
    assert [(status, answer["usage"]["completion_tokens"]) for status, answer in answers] == [(200, 300)] * 2
