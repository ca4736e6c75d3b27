"""Bytes that are no proper HTTP, on real sockets: the server answers or hangs up, keeps its memory, and goes on."""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path

import pytest
from acceptance.served import Served

pytestmark = pytest.mark.slow
MB = 2**20
SENT_MB, KEPT_MB = 1200, 450  # a body of 64 MB and some copies of it, whatever is sent
POST = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def talk(server: Served, *pieces: bytes, wait_s: float = 40.0) -> bytes:
    """What comes back on a connection that sends these, until it is closed or an answer is there."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=wait_s) as client:
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                client.sendall(piece)
        heard = b""
        with contextlib.suppress(ConnectionError, TimeoutError):
            while b"\r\n\r\n" not in heard and (more := client.recv(65536)):
                heard += more
        return heard


def resident(server: Served) -> int:
    """Bytes that the proxy and the replica hold."""
    names = ("ray::ProxyActor", "ray::ServeReplica")
    pids = [pid for pid, name in server.stages() if name.startswith(names)]
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 for pid in pids)


@pytest.mark.parametrize(
    ("pieces", "statuses"),
    [
        ([f"{POST}Content-Length: 10000000000\r\n\r\n".encode()], (b"413",)),
        ([f"{POST}Content-Length: -1\r\n\r\n".encode()], (b"400",)),
        ([f"{POST}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".encode()], (b"400",)),
        ([f"{POST}Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFF\r\n".encode()], (b"400", b"408", b"413", b"")),
        ([b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 300_000 + b"\r\n\r\n"], (b"400", b"431")),
        ([b"GET /" + b"a" * 300_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"], (b"400", b"414", b"431")),
        ([b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200)], (b"400", b"")),
        ([b"GET /v1/models HTTP/1.1\r\nHost: evil.example\r\n\r\n"], (b"403",)),
        ([b"GET /v1/models HTTP/1.1\r\n\r\n"], (b"400", b"403")),
        ([b"TRACE / HTTP/1.1\r\nHost: localhost\r\n\r\n"], (b"405",)),
        ([b"GET //evil.example/%2e%2e/%00 HTTP/1.1\r\nHost: localhost\r\n\r\n"], (b"404",)),
        ([b"GET /page/..%2f..%2fserve_app.py HTTP/1.1\r\nHost: localhost\r\n\r\n"], (b"404",)),
    ],
    ids=[
        *("ten gigabytes", "minus one", "two lengths", "a chunk of 2^64", "a header", "a path", "TLS"),
        *("a name of its own", "no name", "TRACE", "two slashes", "a way up"),
    ],
)
def test_what_is_no_proper_request_is_refused_and_the_server_goes_on(
    light_heavy: Served, pieces: list[bytes], statuses: tuple[bytes, ...]
) -> None:
    status = talk(light_heavy, *pieces).split(b" ")[1:2]
    assert (status[0] if status else b"") in statuses
    assert light_heavy.get("/ready")[0] == 200


def test_a_body_without_end_takes_no_memory_beyond_its_limit(light_heavy: Served) -> None:
    if light_heavy.pid is None:
        pytest.skip("a server that was not started here")
    before = resident(light_heavy)
    chunk = b"%x\r\n" % MB + b" " * MB + b"\r\n"
    heard = talk(light_heavy, f"{POST}Transfer-Encoding: chunked\r\n\r\n".encode(), *[chunk] * SENT_MB)
    assert heard.split(b" ")[1:2] in ([b"413"], [])
    grown, end = SENT_MB, time.monotonic() + 30.0
    while grown >= KEPT_MB and time.monotonic() < end:  # what was on its way is let go of
        time.sleep(1.0)
        grown = (resident(light_heavy) - before) / MB
    print(f"\n{SENT_MB} MB sent, {grown:.0f} MB kept")
    assert grown < KEPT_MB
    assert light_heavy.get("/ready")[0] == 200


def test_a_header_without_end_is_cut_off(light_heavy: Served) -> None:
    before = light_heavy.stages()
    heard = talk(light_heavy, b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: ", *[b"a" * MB] * 200)
    assert heard.split(b" ")[1:2] in ([b"400"], [b"431"], [])
    assert light_heavy.get("/ready")[0] == 200 and light_heavy.stages() == before


def test_half_requests_by_the_hundred_keep_nobody_out(light_heavy: Served) -> None:
    with contextlib.ExitStack() as stack:
        for number in range(300):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", light_heavy.port), timeout=10))
            client.sendall(b"GET /v1/models HT" if number % 2 else f"{POST}Content-Length: 100\r\n\r\n".encode())
        answers = [light_heavy.get(path)[0] for path in ("/ready", "/v1/models", "/health")]
    assert answers == [200, 200, 200]
    assert light_heavy.get("/ready")[0] == 200
