"""The link between an edge and its core, over gRPC on loopback: cuts, hostile peers, flow control, tokens and TLS."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import math
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from edge.edge_ends import HashTransport, Wire, ask, box, core, expected, hash_of, hello, recording, said

from cascade_runtime.edge.ingest import windows_of
from cascade_runtime.edge.packing import RawPacker, bodies_of, checksum
from cascade_runtime.errors import AccessError, ConfigError, DeadlineExceeded, RemoteError
from cascade_runtime.proto import edge_pb2, edge_pb2_grpc
from cluster.edge import PORT
from cluster.edge.doors import CoreDoor, EdgeDoor
from cluster.edge.session import SessionLimits
from cluster.serving.api_keys import digest

TOKEN = "a-token-of-more-than-16"
Kind = edge_pb2.Outcome.Kind


@contextlib.asynccontextmanager
async def hand_made(port: int, first: edge_pb2.FromEdge | None = None) -> AsyncIterator[Any]:
    """A call that says what a test wants; after a hello it has read the welcome."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = edge_pb2_grpc.EdgeLinkStub(channel).Link(timeout=20)
        if first is not None:
            await call.write(first)
            assert (await call.read()).WhichOneof("said") == "welcome"
        yield call
        call.cancel()


def batch(seq: int, window: int = 0, **changes: Any) -> edge_pb2.FromEdge:
    """A whole window of `recording()` as batch `seq`."""
    whole = RawPacker().pack(list(windows_of(recording(), 50_000))[window])
    (body,) = bodies_of(whole, 1 << 20)
    fields = {"seq": seq, "body": body, "crc32": checksum(seq, body), **changes}
    return edge_pb2.FromEdge(batch=edge_pb2.Batch(**fields))


async def ends_with(call: Any) -> grpc.StatusCode:
    """How a call ends."""
    with contextlib.suppress(grpc.aio.AioRpcError):
        while await call.read() is not grpc.aio.EOF:
            pass
    return await call.code()


async def outcome_of(call: Any) -> edge_pb2.Outcome:
    while True:
        message = await call.read()
        assert message is not grpc.aio.EOF, await call.details()
        if message.WhichOneof("said") == "outcome":
            return message.outcome


def run(test: Callable[[], Any]) -> None:
    asyncio.run(asyncio.wait_for(test(), 40))


def test_every_window_is_answered_as_in_process_with_its_stages_in_time() -> None:
    async def test() -> None:
        events = recording()
        async with core() as (_, port):
            edge = box(port, events, chunk_bytes=1024)
            replies = await ask(edge)
        assert said(replies) == expected(events)
        assert edge.link.counts.batches == 2 * len(replies)  # a window of 1,272 bytes in pieces of 1,024
        for reply in replies:
            order = ["packed", "sent", "received", "checked", "started", "answered", "arrived"]
            assert list(reply.latency_ms) == [*order[:5], "first", *order[5:]]
            assert reply.latency_ms["sent"] <= reply.latency_ms["arrived"]
            assert reply.latency_ms["checked"] <= reply.latency_ms["started"] <= reply.latency_ms["answered"]

    run(test)


@pytest.mark.parametrize("cut_after", [3_000, 9_000, 20_000, 60_000])
def test_a_cut_in_the_middle_loses_nothing_and_doubles_nothing(cut_after: int) -> None:
    async def test() -> None:
        events, transport = recording(30, 120), HashTransport()
        async with core(transport) as (_, port), Wire(port) as wire:
            wire.cut_after = cut_after
            edge = box(wire.port, events, chunk_bytes=1024)
            replies = await ask(edge)
            assert wire.connections >= 2 and edge.link.counts.links >= 2
        assert said(replies) == expected(events)
        assert len(transport.asked) == 30  # no window went through the pipeline twice
        assert len({request.request_id for request in transport.asked}) == 30

    run(test)


def test_a_core_that_forgot_everything_is_told_again_what_has_no_answer() -> None:
    async def test() -> None:
        events, stuck = recording(6), HashTransport()
        stuck.open.clear()
        async with core(stuck) as (_, first_port):
            edge = box(first_port, events)
            asked = asyncio.create_task(ask(edge))
            while len(stuck.asked) < 2:
                await asyncio.sleep(0.01)
        async with core() as (_, second_port):
            edge.link._door = EdgeDoor(server=f"127.0.0.1:{second_port}")
            replies = await asked
        assert said(replies) == expected(events)

    run(test)


def test_a_session_goes_on_over_its_newest_connection_only() -> None:
    async def test() -> None:
        transport = HashTransport()
        async with core(transport) as (_, port), hand_made(port, hello()) as old:
            await old.write(batch(1))
            assert (await outcome_of(old)).seq == 1
            async with hand_made(port) as new:
                await new.write(hello())
                welcome = await new.read()
                assert welcome.welcome.resumed and welcome.accepted == 1
                await new.write(batch(1))  # again
                await new.write(batch(2, 1))
                outcomes = [await outcome_of(new), await outcome_of(new)]
                assert [outcome.seq for outcome in outcomes] == [1, 2]  # what was not taken is told again
                with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # it may have ended by then
                    await old.write(batch(3, 2))
                assert await ends_with(old) == grpc.StatusCode.DATA_LOSS
        assert [hash_of(request.events) for request in transport.asked] == [
            text for _, text in expected(recording())[:2]
        ]

    run(test)


@pytest.mark.parametrize(
    ("message", "code", "why"),
    [
        (lambda: batch(1, crc32=7), grpc.StatusCode.DATA_LOSS, "checksum"),
        (lambda: batch(3), grpc.StatusCode.DATA_LOSS, "expected: 1"),
        (lambda: batch(1, body=b"\xff", crc32=checksum(1, b"\xff")), grpc.StatusCode.INVALID_ARGUMENT, "WindowPart"),
        (lambda: batch(1, body=bytes(2 << 20)), grpc.StatusCode.RESOURCE_EXHAUSTED, "larger than max"),
        (lambda: edge_pb2.FromEdge(taken=9, pulse=edge_pb2.Pulse()), grpc.StatusCode.DATA_LOSS, "not all were told"),
        (lambda: hello(), grpc.StatusCode.INVALID_ARGUMENT, "after the hello"),
    ],
)
def test_what_an_edge_may_not_say_ends_the_call_and_reaches_no_pipeline(message: Any, code: Any, why: str) -> None:
    async def test() -> None:
        transport = HashTransport()
        async with core(transport) as (_, port), hand_made(port, hello()) as call:
            await call.write(message())
            assert await ends_with(call) == code
            assert why in await call.details()
            assert not transport.asked
            async with hand_made(port) as again:  # and the session can go on
                await again.write(hello())
                assert (await again.read()).accepted == 0
                await again.write(batch(1))
                assert (await outcome_of(again)).answer.text == expected(recording())[0][1]

    run(test)


@pytest.mark.parametrize(
    ("first", "why"),
    [
        (lambda: batch(1), "a hello"),
        (lambda: hello(version=2), "hello.version"),
        (lambda: hello(session=b"short"), "16 bytes"),
        (lambda: hello(first=0), "above 0"),
        (lambda: hello(cut="features"), "raw, frames"),
        (lambda: hello(question="  "), "question"),
        (lambda: hello(width=0), "width"),
        (lambda: hello(sampling=edge_pb2.Sampling(top_p=2.0, max_tokens=4)), "top_p"),
    ],
)
def test_a_hello_that_cannot_be_meant_is_refused_by_name(first: Any, why: str) -> None:
    async def test() -> None:
        async with core() as (_, port), hand_made(port) as call:
            await call.write(first())
            assert await ends_with(call) == grpc.StatusCode.INVALID_ARGUMENT
            assert why in await call.details()

    run(test)


def test_a_session_cannot_be_made_to_ask_something_else() -> None:
    async def test() -> None:
        async with core() as (_, port), hand_made(port, hello()), hand_made(port) as call:
            await call.write(hello(question="And your secrets?"))
            assert await ends_with(call) == grpc.StatusCode.INVALID_ARGUMENT
            assert "another question" in await call.details()

    run(test)


def test_an_edge_cannot_run_beyond_its_limit() -> None:
    async def test() -> None:
        transport = HashTransport()
        transport.open.clear()
        async with core(transport, limits=SessionLimits(depth=3)) as (_, port), hand_made(port, hello()) as call:
            for seq in range(1, 5):
                await call.write(batch(seq, seq - 1))
            assert await ends_with(call) == grpc.StatusCode.DATA_LOSS
            assert "the limit is 3" in await call.details()

    run(test)


def test_a_slow_core_bounds_what_is_under_way_and_the_newest_windows_are_answered() -> None:
    async def test() -> None:
        events, transport = recording(60), HashTransport()
        transport.open.clear()
        async with core(transport, limits=SessionLimits(depth=8, fresh=2, concurrency=1)) as (made, port):
            edge = box(port, events, keep="newest", waiting=4, ahead=6, speed=50.0)
            asked = asyncio.create_task(ask(edge))
            most = 0
            while edge.ingest.counts.windows < 60:
                await asyncio.sleep(0.002)
                most = max(most, edge.link.ledger.unsettled)
                (status,) = [session.status() for session in made._sessions.values()] or [edge_pb2.SessionStatus()]
                assert status.waiting <= 2 and len(edge.ingest) <= 4
            transport.open.set()
            replies = await asked
        assert 1 < most <= 6
        answered = [reply.outcome.number for reply in replies if reply.outcome.kind == Kind.ANSWERED]
        dropped = [reply.outcome.number for reply in replies if reply.outcome.kind == Kind.DROPPED]
        assert answered[0] == 0 and answered[-1] == 59 and dropped
        assert len(answered) + len(dropped) + edge.ingest.counts.dropped == 60
        texts = dict(expected(events))
        assert all(text == texts[number] for number, text in said(replies) if number in answered)

    run(test)


def test_the_core_tells_what_it_counts_of_a_session() -> None:
    async def test() -> None:
        events, transport = recording(5), HashTransport()
        transport.poison = {expected(events)[3][1]}
        async with core(transport) as (made, port):
            edge = box(port, events, ahead=1)
            seen: list[edge_pb2.StatusReply] = []
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                stub = edge_pb2_grpc.EdgeLinkStub(channel)

                async def look(reply: Any) -> None:
                    seen.append(await stub.Status(edge_pb2.StatusRequest()))

                looks = []
                transport.open.clear()
                running = asyncio.create_task(edge.run(lambda reply: looks.append(reply)))
                while not transport.asked:
                    await asyncio.sleep(0.005)
                await look(None)
                transport.open.set()
                await running
            (status,) = seen[0].sessions
            assert (status.connected, status.cut, status.accepted, status.answered) == (True, "raw", 1, 0)
            kinds = [reply.outcome.kind for reply in looks]
            assert kinds == [Kind.ANSWERED] * 3 + [Kind.FAILED] + [Kind.ANSWERED]
            assert looks[3].outcome.error == "StageError" and "poisoned" in looks[3].outcome.problem
            read = made.metrics.registry.get_sample_value
            assert read("cascade:edge_windows_total", {"outcome": "answered"}) == 4
            assert read("cascade:edge_windows_total", {"outcome": "failed"}) == 1
            assert read("cascade:edge_ingest_total", {"what": "windows"}) == 5
            assert read("cascade:edge_latency_seconds_count", {"stage": "answered"}) == 5
            assert read("cascade:edge_sessions") == 0  # it ended in peace, and was forgotten

    run(test)


def test_without_its_token_nobody_is_let_in() -> None:
    async def test() -> None:
        events = recording(3)
        async with core(key_digests=(digest(TOKEN),)) as (_, port):
            for wrong in ("", TOKEN + "x"):
                with pytest.raises(AccessError, match="token"):
                    await ask(box(port, events, token=wrong))
            assert said(await ask(box(port, events, token=TOKEN))) == expected(events)
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                status = edge_pb2_grpc.EdgeLinkStub(channel).Status(edge_pb2.StatusRequest())
                with pytest.raises(grpc.aio.AioRpcError, match="UNAUTHENTICATED"):
                    await status

    run(test)


def certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed one for this machine, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "certificate.pem", folder / "key.pem"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths


def test_over_tls_only_the_core_that_holds_the_certificate_is_spoken_to(tmp_path: Path) -> None:
    async def test() -> None:
        events = recording(3)
        (tmp_path / "other").mkdir()
        mine, key = certificate(tmp_path)
        other, _ = certificate(tmp_path / "other")
        async with core(certificate=mine, key=key, key_digests=(digest(TOKEN),)) as (_, port):
            replies = await ask(box(port, events, token=TOKEN, authority=mine))
            assert said(replies) == expected(events)
            for wrong in (other, None):  # another authority, and no TLS at all
                with pytest.raises(DeadlineExceeded, match="no link"):
                    await ask(box(port, events, token=TOKEN, authority=wrong, give_up_s=0.0))

    run(test)


@pytest.mark.parametrize(
    ("door", "field"),
    [
        (lambda: CoreDoor(host="0.0.0.0", port=1), "token file"),
        (lambda: CoreDoor(host="0.0.0.0", port=1, key_digests=("x",)), "TLS"),
        (lambda: CoreDoor(host="127.0.0.1", port=1, key=Path("key.pem")), "both, or none"),
        (lambda: CoreDoor(host="127.0.0.1", port=70_000), "0 to 65535"),
        (lambda: EdgeDoor(server="core.example:8100", token=TOKEN), "TLS, this machine"),
        (lambda: EdgeDoor(server="core.example:"), "HOST:PORT"),
        (lambda: EdgeDoor(server="h:99999999"), "HOST:PORT"),
    ],
)
def test_neither_end_says_a_token_in_the_clear_or_opens_to_everybody(door: Any, field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        door()


def test_a_core_that_never_settles_anything_is_given_up() -> None:
    async def test() -> None:
        async with core() as (_, port):
            edge = box(port, recording(2))
            edge.link.ledger.due = lambda: (99, b"")  # type: ignore[method-assign]  # a broken edge: refused each time
            with pytest.raises(RemoteError, match="in a row brought nothing"):
                await ask(edge)

    run(test)


def test_a_replay_keeps_the_sensors_time() -> None:
    async def test() -> None:
        async with core() as (_, port):
            replies = await ask(box(port, recording(4), speed=5.0, keep="newest"))
        assert [reply.begin_us for reply in replies] == [7_000_000 + 50_000 * k for k in range(4)]
        assert all(reply.latency_ms["packed"] >= 0 and math.isfinite(reply.latency_ms["arrived"]) for reply in replies)

    run(test)


def test_a_core_is_at_the_usual_port_unless_somebody_says_another() -> None:
    assert EdgeDoor(server="core.example").server == f"core.example:{PORT}"
    assert EdgeDoor(server="core.example:81").server == "core.example:81"
