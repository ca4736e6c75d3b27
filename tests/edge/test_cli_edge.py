"""`cascade edge`: a recording in, a line per window out; what it says when it cannot."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from edge.edge_ends import HashTransport, core, expected, recording

from cascade_runtime.events import Events, read_events, write_events
from cluster.cli import main
from cluster.serving.api_keys import digest

TOKEN = "a-token-of-more-than-16"


@contextlib.contextmanager
def running(**door: object) -> Iterator[int]:
    """A core on a thread of its own."""
    ready, ports = threading.Event(), list[int]()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        async with core(HashTransport(), **door) as (_, port):
            ports.append(port)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(20)
    try:
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(20)
        loop.close()


@pytest.fixture
def file(tmp_path: Path) -> tuple[Path, Events]:
    path = tmp_path / "clip.npz"
    write_events(path, recording(4))
    return path, read_events(path)


def test_every_window_of_a_file_becomes_a_line(file: tuple[Path, Events], capsys: pytest.CaptureFixture[str]) -> None:
    path, events = file
    with running() as port:
        options = ["--server", f"127.0.0.1:{port}", "-q", "What moves?", "--keep", "all", "--speed", "inf", "--json"]
        assert main(["edge", str(path), *options]) == 0
    *lines, last = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["window"], line["text"]) for line in lines] == expected(events)
    assert all(line["is"] == "answered" and line["latency_ms"]["arrived"] > 0 for line in lines)
    assert (last["windows"], last["dropped"], last["links"], last["batches"]) == (4, 0, 1, 4)


def test_status_needs_the_token_and_tells_of_sessions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    token = tmp_path / "token"
    token.write_text(f"# of the vehicle\n{TOKEN}\n")
    with running(key_digests=(digest(TOKEN),)) as port:
        assert main(["edge", "--server", f"127.0.0.1:{port}", "--status"]) == 1
        assert "token" in capsys.readouterr().err
        assert main(["edge", "--server", f"127.0.0.1:{port}", "--status", "--token-file", str(token)]) == 0
    assert json.loads(capsys.readouterr().out) == {"sessions": []}


@pytest.mark.parametrize(
    ("options", "code", "why"),
    [
        (["--server", "h:1"], 2, "--question"),
        (["--server", "h:0"], 2, "HOST:PORT"),
        (["--server", ""], 2, "HOST:PORT"),
        (["--server", "h"], 2, "--question"),
        (["--server", "h:1", "-q", "x", "--cut", "tokens"], 2, "raw, frames, features"),
        (["--server", "h:1", "-q", "x", "--cut", "features"], 2, "with the recipe"),
        (["--server", "h:1", "-q", "x", "--cut", "drafts", "--recipe", "light_heavy"], 2, 'drafter = "edge"'),
        (["--server", "h:1", "-q", "x", "--window-ms", "nan"], 2, "--window-ms"),
        (["--server", "h:1", "-q", "x", "--speed", "0"], 2, "speed"),
        (["--server", "127.0.0.1:9", "-q", "x", "--give-up-s", "0"], 1, "no link"),
    ],
)
def test_what_cannot_be_is_one_line(
    file: tuple[Path, Events], options: list[str], code: int, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["edge", str(file[0]), *options]) == code
    said = capsys.readouterr().err
    assert why in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--host", "0.0.0.0"], "token file"),
        (["--ssl-keyfile", "key.pem"], "both, or none"),
        (["--grace-s", "nan"], "--grace-s"),
        (["--target", "http://127.0.0.1:8000"], "ray://HOST:PORT"),
    ],
)
def test_a_core_that_everybody_could_reach_is_not_started(
    options: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["edge-server", "light_heavy", *options]) == 2
    assert why in capsys.readouterr().err
