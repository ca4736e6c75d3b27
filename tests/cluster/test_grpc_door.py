"""The gRPC server seen from the wire: what it refuses and how, what it is asked and says, how it is set up.

test_grpc_sessions.py has sessions, test_grpc_health.py what any gRPC tool may ask, grpc_calls.py the calls themselves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from chat_bodies import chat_body
from client.grpc_servers import Served, free_port, grpc_server, until
from client.scripted import Scripted
from google.protobuf.json_format import MessageToDict
from grpc_calls import BEARER, EVENTS, GENERATE, KEY, asked, calls, health, reflected, refused
from grpc_health.v1 import health_pb2, health_pb2_grpc
from toy_family import toy_recipe, write_toy_family

from cascade_runtime.api import Answer
from cascade_runtime.config import Recipe
from cascade_runtime.engine import Engine
from cascade_runtime.errors import ConfigError
from cascade_runtime.events import write_events
from cascade_runtime.proto import cascade_pb2 as wire
from cluster.cli import main
from cluster.serving.api_keys import digest
from cluster.serving.chat_answer import completion
from cluster.serving.chat_request import parse_chat
from cluster.serving.gateway import Gateway
from cluster.serving.rpc.messages import answer_of, body_of
from cluster.serving.settings import ServerSettings

# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"question": " "}, "question"),
        ({"question": "x" * 8193}, "question"),
        ({"recording": {}}, "recording"),
        ({"recording": {"data": b"nonsense"}}, "recording"),
        ({"recording": {"file_id": "file-of-nobody"}}, "recording.file_id"),
        ({"recording": {"data": b"x", "media_type": "image/png"}}, "recording.data"),
        (
            {"recording": {"data": b"x", "media_type": "application/octet-stream", "format": "pickle"}},
            "recording.format",
        ),
        ({"recording": {"data": EVENTS.to_ipc_bytes(), "width": 0, "height": 4}}, "recording.width"),
        ({"sampling": {"temperature": float("nan")}}, "temperature"),
        ({"sampling": {"top_p": 1.5}}, "top_p"),
        ({"sampling": {"top_k": -2}}, "top_k"),
        ({"sampling": {"max_tokens": 51}}, "max_tokens"),
        ({"sampling": {"max_tokens": -1}}, "max_tokens"),
        ({"sampling": {"stop": [""]}}, "stop"),
        ({"sampling": {"stop": ["a"] * 9}}, "stop"),
        ({"deadline_ms": 0}, "deadline_ms"),
        ({"deadline_ms": 2**32 - 1}, "deadline_ms"),
        ({"clip": {"t_start_us": -1}}, "clip.t_start_us"),
        ({"clip": {"t_start_us": 10**15, "t_end_us": 2 * 10**15}}, "clip"),
        ({"request_id": "a name"}, "request_id"),
        ({"idempotency_key": "a key"}, "idempotency_key"),
    ],
)
def test_bad_input_is_an_invalid_argument_that_names_the_message_s_field(
    server: Served, fields: dict[str, Any], field: str
) -> None:
    with calls(server) as stub:
        for call in (lambda: stub.Generate(asked(**fields)), lambda: list(stub.GenerateStream(asked(**fields)))):
            status, told, text = refused(call)
            assert (status, told["field"]) == ("INVALID_ARGUMENT", field)
            assert text.startswith(field) and "messages" not in text and "retry-after" not in told


def test_a_model_that_is_not_there_is_not_found(server: Served) -> None:
    with calls(server) as stub:
        status, told, text = refused(lambda: stub.Generate(asked(model="gpt")))
        assert (status, told["code"]) == ("NOT_FOUND", "model_not_found") and "'gpt'" in text
        assert stub.Generate(asked(model="light_heavy")).text == "ab"
        assert refused(lambda: stub.Trace(wire.RequestName(request_id="nobody")))[0] == "NOT_FOUND"


def test_what_another_replica_has_is_found_and_cancelled(server: Served) -> None:
    with calls(server) as stub:
        there = wire.RequestName(request_id="elsewhere")
        assert "elsewhere" in stub.Trace(there).json and stub.Cancel(there) == wire.Cancelled()


def test_messages_that_are_none_are_the_caller_s_fault(server: Served) -> None:
    """On every kind of method, reflection's too."""
    garbage = b"\x0a\xff\xff\xff\xff\x0f"
    with grpc.insecure_channel(server.address) as channel:
        kinds = {
            GENERATE: lambda path: channel.unary_unary(path)(garbage),
            "/cascade.v1.Cascade/GenerateStream": lambda path: list(channel.unary_stream(path)(garbage)),
            "/cascade.v1.Cascade/Session": lambda path: list(channel.stream_stream(path)(iter([garbage]))),
            "/grpc.health.v1.Health/Check": lambda path: channel.unary_unary(path)(garbage),
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": lambda path: list(
                channel.stream_stream(path)(iter([garbage]))
            ),
        }
        for path, call in kinds.items():
            status, told, _ = refused(lambda call=call, path=path: call(path))
            assert (status, told["code"]) == ("INVALID_ARGUMENT", "invalid_message"), path
        assert refused(lambda: channel.unary_unary("/cascade.v1.Cascade/Nothing")(b""))[0] == "UNIMPLEMENTED"
    text = server.gateway.counters.text({})
    assert 'cascade:grpc_calls_total{code="INVALID_ARGUMENT"}' in text


def test_a_message_that_is_too_large_is_not_taken(server: Served) -> None:
    with calls(server) as stub:
        status, _, text = refused(lambda: stub.Generate(asked(recording={"data": bytes(300_000)})))
        assert status == "RESOURCE_EXHAUSTED" and "larger than max" in text


def test_without_a_key_not_even_the_message_is_read(recipe: Recipe) -> None:
    with grpc_server(recipe, Scripted(), key_digests=(digest(KEY),), max_body_bytes=200_000) as served:
        with calls(served) as stub:
            large = asked(recording={"data": bytes(300_000)})
            for metadata in ((), (("authorization", "Bearer wrong"),), (("authorization", f"Basic {KEY}"),)):
                status, told, text = refused(lambda metadata=metadata: stub.Generate(large, metadata=metadata))
                assert (status, told["code"]) == ("UNAUTHENTICATED", "invalid_api_key") and KEY not in text
            assert refused(lambda: stub.Generate(large, metadata=BEARER))[0] == "RESOURCE_EXHAUSTED"
            assert stub.Generate(asked(), metadata=BEARER).text == "ab"
            assert stub.Health(wire.HealthRequest()).ready
        with grpc.insecure_channel(served.address) as channel:
            assert health(channel) == "SERVING"
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert refused(lambda: next(watch))[0] == "UNAUTHENTICATED"
            assert refused(lambda: reflected(channel, list_services=""))[0] == "UNAUTHENTICATED"


# -- what it is asked and what it says -------------------------------------------------------------------------------


def test_a_request_is_the_body_that_http_would_have_got(server: Served) -> None:
    message = asked(
        model="cascade",
        sampling={"temperature": 0.5, "top_p": 0.9, "top_k": 7, "seed": 2**60, "stop": ["x"], "ignore_eos": True},
        speculate=False,
        deadline_ms=900,
        clip={"t_start_us": 5, "t_end_us": 40_000},
    )
    same = chat_body(
        EVENTS,
        model="cascade",
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        seed=2**60,
        stop=["x"],
        ignore_eos=True,
        max_tokens=5,
        cascade={"speculate": False, "deadline_ms": 900, "clip": {"t_start_us": 5, "t_end_us": 40_000}},
    )
    limits = server.gateway.limits
    over_grpc, over_http = parse_chat(body_of(message, message.recording), limits), parse_chat(same, limits)
    for name in ("events", "question", "sampling", "speculate"):
        assert getattr(over_grpc.request, name) == getattr(over_http.request, name)
    assert (over_grpc.model, over_grpc.deadline_s) == (over_http.model, over_http.deadline_s) == ("cascade", 0.9)


@pytest.mark.parametrize(("media_type", "format"), [("application/x-npz", ""), ("application/octet-stream", "npz")])
def test_recordings_come_in_the_formats_of_http(recipe: Recipe, tmp_path: Path, media_type: str, format: str) -> None:
    write_events(tmp_path / "a.npz", EVENTS)
    transport = Scripted()
    with grpc_server(recipe, transport) as served, calls(served) as stub:
        recording = {"data": (tmp_path / "a.npz").read_bytes(), "media_type": media_type, "format": format}
        stub.Generate(asked(recording=recording))
        assert transport.asked[0].events == EVENTS


def test_an_answer_has_every_fact_of_the_json(tmp_path: Path) -> None:
    toy = toy_recipe(write_toy_family(tmp_path), ["noisy"])
    gateway = Gateway(ServerSettings(), toy, Scripted())
    chat = parse_chat(chat_body(max_tokens=30, temperature=0.7, seed=3), gateway.limits)
    (answer,) = Engine.load(toy).generate([chat.request])
    assert isinstance(answer, Answer)

    class Entry:
        request_id, created = "r", 1_790_000_000

    head = gateway._head(chat, Entry())  # type: ignore[arg-type]
    told = MessageToDict(
        answer_of(head, answer), preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    json = completion(head, answer)
    for edge in json["cascade"]["edges"]:  # follow from the counts
        del edge["acceptance_rate_per_pos"], edge["acceptance_hazard_per_pos"]
    told["cascade"]["seed"] = int(told["cascade"]["seed"])  # JSON of protobuf: 64 bits as text
    assert json["cascade"]["rejections"] and json["cascade"]["gate"] and json["metrics"]["speculative_decoding"]
    for part in ("usage", "metrics", "cascade"):
        assert told[part] == _with_lists(json[part]), part
    assert (told["text"], told["finish_reason"]) == (answer.text, answer.finish_reason)
    assert (told["model"], told["system_fingerprint"]) == (json["model"], json["system_fingerprint"])


def _with_lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_lists(inner) for key, inner in value.items()}
    return [_with_lists(inner) for inner in value] if isinstance(value, list | tuple) else value


def test_the_earlier_of_two_deadlines_holds(recipe: Recipe) -> None:
    transport = Scripted()
    with grpc_server(recipe, transport) as served, calls(served) as stub:
        stub.Generate(asked(), timeout=1000.0)
        stub.Generate(asked(), timeout=30.0)
        stub.Generate(asked(deadline_ms=1500), timeout=30.0)
        stub.Generate(asked(deadline_ms=90_000), timeout=30.0)
    limits = [recipe.deadlines.request_s, 30.0, 1.5, 30.0]
    assert [limit / 2 < told < limit + 1 for told, limit in zip(transport.timeouts, limits, strict=True)] == [True] * 4


def test_one_key_is_one_run_and_one_id_one_request(recipe: Recipe) -> None:
    transport = Scripted()
    with grpc_server(recipe, transport) as served, calls(served) as stub:
        keyed = asked(request_id="r", idempotency_key="k")
        assert stub.Generate(keyed) == stub.Generate(keyed) and transport.started == 1
        status, told, _ = refused(lambda: stub.Generate(asked(idempotency_key="k", question="Else?")))
        assert (status, told["code"]) == ("INVALID_ARGUMENT", "idempotency_key_reused")
        transport.go.clear()
        running = stub.Generate.future(asked(request_id="s"))
        until(lambda: transport.started == 2)
        assert refused(lambda: stub.Generate(asked(request_id="s")))[0] == "ALREADY_EXISTS"
        stub.Cancel(wire.RequestName(request_id="s"))
        status, told, _ = refused(running.result)
        assert (status, told["code"], told["cascade-request-id"]) == ("CANCELLED", "cancelled", "s")
        until(lambda: transport.ended == 2 and not served.inside)
        assert refused(lambda: stub.Cancel(wire.RequestName(request_id="s")))[0] == "NOT_FOUND"


def test_a_full_server_says_when_to_come_back(recipe: Recipe) -> None:
    transport = Scripted()
    transport.go.clear()
    with grpc_server(recipe, transport, max_queue=0) as served, calls(served) as stub:
        running = [stub.Generate.future(asked()) for _ in range(2)]
        until(lambda: transport.started == 2)
        status, told, text = refused(lambda: stub.Generate(asked()))
        assert (status, told["code"], told["retry-after"]) == ("RESOURCE_EXHAUSTED", "overloaded", "1")
        assert text == "2 requests are running or waiting"
        transport.go.set()
        assert [call.result().text for call in running] == ["ab", "ab"]
    limits = {"key_digests": (digest(KEY),), "key_per_minute": 1}
    with grpc_server(recipe, Scripted(), **limits) as served, calls(served) as stub:
        stub.Generate(asked(), metadata=BEARER)
        status, told, _ = refused(lambda: stub.Generate(asked(), metadata=BEARER))
        assert (status, told["code"]) == ("RESOURCE_EXHAUSTED", "rate_limit_exceeded")
        assert 1 <= int(told["retry-after"]) <= 60


# -- how it is set up ------------------------------------------------------------------------------------------------


def test_a_public_address_needs_a_key_and_a_port_is_this_server_s_alone(
    recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        pytest.raises(ConfigError, match=r"host: got '0\.0\.0\.0'"),
        grpc_server(recipe, Scripted(), grpc_host="0.0.0.0"),
    ):
        pass
    with pytest.raises(ConfigError, match="grpc_keyfile"):
        ServerSettings(grpc_port=1, grpc_certfile="cert.pem")
    with grpc_server(recipe, Scripted()) as served:
        port = served.address.rpartition(":")[2]
        assert main(["serve", "heavy", "--grpc-port", port]) == 2
        assert f"--grpc-port: got {port}" in capsys.readouterr().err
    assert main(["serve", "heavy", "--grpc-port", str(free_port()), "--ssl-certfile", "only.pem"]) == 2
