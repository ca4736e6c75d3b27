"""A camera's windows out of a pipe: cut by the sensor's time, told with its latency, dropped where nobody can wait."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from edge.edge_ends import HashTransport, ask, core, hash_of, recording, settings
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from cascade_runtime.edge.ingest import Window
from cascade_runtime.errors import ConfigError, DeadlineExceeded, InputError
from cascade_runtime.events import Events
from cluster.edge import sensor as sensor_module
from cluster.edge.box import EdgeBox
from cluster.edge.doors import EdgeDoor
from cluster.edge.sensor import Sensor, arrow_sensor

WINDOW_US = 50_000
COMMAND = [sys.executable, "-c", "import sys; from cluster.cli import main; sys.exit(main(sys.argv[1:]))"]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def stream_of(parts: Iterable[Events]) -> io.BytesIO:
    sink, writer = io.BytesIO(), None
    for part in parts:
        batch = part.to_record_batch()
        writer = writer or pa.ipc.new_stream(sink, batch.schema)
        writer.write_batch(batch)
    if writer is not None:
        writer.close()
    return io.BytesIO(sink.getvalue())


def pieces(events: Events, sizes: list[int]) -> list[Events]:
    found, at = list[Events](), 0
    for size in sizes:
        found.append(events.slice(at, min(len(events), at + size)))
        at += size
    return [*found, events.slice(min(at, len(events)), len(events))]


def told(windows: Iterable[Window]) -> list[tuple[int, int, int, str]]:
    return [(each.number, each.begin_us, each.end_us, hash_of(each.events)) for each in windows]


@given(st.lists(st.integers(0, 400), max_size=12), st.integers(1, 9))
@hypothesis_settings(max_examples=40, deadline=None)
def test_windows_are_those_of_the_whole_recording_however_it_comes(sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    t = np.sort(rng.integers(0, 400_000, 1500)) + np.where(np.arange(1500) > 900, 700_000, 0)  # a quiet stretch
    events = Events(t, t % 32, t % 24, t % 2, width=32, height=24, t_offset_us=seed * 10**9)
    found = list(arrow_sensor(stream_of(pieces(events, sizes)), WINDOW_US).windows)
    begin_us, wanted = events.t_offset_us + int(t[0]), list[tuple[int, int, str]]()
    for number, part in enumerate(events.windows_by_time(WINDOW_US)):
        if len(part):
            start_us = begin_us + number * WINDOW_US
            wanted.append((start_us, start_us + WINDOW_US, hash_of(part)))
    assert [each[1:] for each in told(found)] == wanted
    assert [each.number for each in found] == list(range(len(found)))


def heard_late(
    monkeypatch: pytest.MonkeyPatch, parts: list[Events], late_ms: list[float], drift: float = 0.0
) -> list[float]:
    """By how many ms after its end, by the sensor's own time, each window counts as closed, where its batches come so
    late and this machine's clock is quicker by `drift`.
    """
    now, last_us = [0], [part.t_offset_us + int(part.t[-1]) for part in parts]

    def arriving(stream: Any) -> Any:
        for part, at_us, late in zip(parts, last_us, late_ms, strict=True):
            now[0] = int(1000 * at_us + drift * 1000 * (at_us - last_us[0]) + 1e6 * late)
            yield part

    monkeypatch.setattr(sensor_module, "_parts", arriving)
    windows = list(arrow_sensor(io.BytesIO(), WINDOW_US, clock_ns=lambda: now[0]).windows)
    return [(each.closed_ns - 1000 * each.end_us) / 1e6 for each in windows]


def test_a_window_closed_when_the_sensor_says_so_by_the_clock_here(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = list(recording(4).windows_by_time(WINDOW_US))
    first, second, third, last = heard_late(monkeypatch, parts, [7.0, 2.0, 30.0, 1.0])
    assert (first, second, third) == (2.0, 2.0, 1.0)  # as late as the least so far
    assert -50.0 < last <= 1.0  # which ended the stream: no time that is still to come


def test_a_clock_that_drifts_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sensor's clock that is slow by a thousandth, over four minutes: .24 s, of which a minute's is believed."""
    t = np.arange(0, 240_000_000, 25_000)
    events = Events(t, t % 32, t % 24, t % 2, width=32, height=24)
    parts = list(events.windows_by_time(1_000_000))
    told = heard_late(monkeypatch, parts, [5.0] * len(parts), drift=0.001)
    truly = [5.0 + 0.001 * each / 1000 for each in range(0, 240_000_000, WINDOW_US)][: len(told)]
    assert max(abs(a - b) for a, b in zip(told, truly, strict=True)) < 70.0


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ([], "no batch|Arrow IPC stream"),
        ([recording(2), recording(2)], "none before"),
        ([Events([5], [0], [0], [1], width=8, height=8).slice(0, 0)] * 2 + ["junk"], "Arrow IPC stream"),
    ],
)
def test_what_is_no_stream_of_events_is_refused(parts: list[Any], why: str) -> None:
    data = stream_of(part for part in parts if isinstance(part, Events)).getvalue()
    if "junk" in parts:
        data = data[:-8] + b"\xff" * 64
    with pytest.raises(InputError, match=why):
        list(arrow_sensor(io.BytesIO(data), WINDOW_US).windows)


def test_a_stream_of_something_else_and_a_batch_beyond_all_bounds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sink = io.BytesIO()
    batch = pa.record_batch({"t": [1, 2]})
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    with pytest.raises(InputError, match=r"cascade\.events"):
        arrow_sensor(io.BytesIO(sink.getvalue()), WINDOW_US)
    monkeypatch.setattr(sensor_module, "MAX_BATCH_EVENTS", 10)
    with pytest.raises(InputError, match="at most 10"):
        arrow_sensor(stream_of([recording(1)]), WINDOW_US)


def test_of_a_window_beyond_all_bounds_the_newest_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensor_module, "MAX_WINDOW_EVENTS", 100)
    t = np.arange(500)
    events = Events(t, t % 32, t % 24, t % 2, width=32, height=24)
    sensor = arrow_sensor(stream_of(pieces(events, [60] * 8)), WINDOW_US)
    (window,) = sensor.windows
    assert len(window.events) + sensor.events_dropped == 500 and 100 <= len(window.events) < 160
    assert int(window.events.t[-1]) == 499


def live(parts: list[Events], go_on: threading.Event | None = None) -> Sensor:
    """A sensor that gives one window, and the others when told."""
    whole = arrow_sensor(stream_of(parts), WINDOW_US)
    closed = whole.windows

    def windows() -> Any:
        for number, window in enumerate(closed):
            if number == 1 and go_on is not None:
                assert go_on.wait(20)
            yield window

    whole.windows = windows()
    return whole


def box_of(port: int, sensor: Sensor, **changes: Any) -> EdgeBox:
    given = {"keep": "join", "speed": 1.0, **changes}
    return EdgeBox(settings(**given), EdgeDoor(server=f"127.0.0.1:{port}"), sensor)


def test_every_window_of_a_camera_is_answered_as_it_comes() -> None:
    events, go_on = recording(5), threading.Event()
    parts = list(events.windows_by_time(WINDOW_US))
    replies: list[Any] = []

    def hear(reply: Any) -> None:
        replies.append(reply)
        go_on.set()  # the camera's second window closes after the answer to the first

    async def test() -> None:
        async with core(HashTransport()) as (_, port):
            edge = box_of(port, live(parts, go_on))
            await asyncio.wait_for(edge.run(hear), 30)
            assert edge.ingest.counts.windows == 5 and edge.ingest.counts.dropped == 0

    asyncio.run(test())
    assert [reply.outcome.answer.text for reply in replies] == [hash_of(part) for part in parts]
    assert all(reply.latency_ms["arrived"] > 0 for reply in replies)


def test_a_run_that_fails_takes_no_more_from_its_camera() -> None:
    taken = list[int]()

    def windows() -> Any:
        whole = list(arrow_sensor(stream_of([recording(3)]), WINDOW_US).windows)
        for number in range(10_000):
            taken.append(number)
            yield replace(whole[number % 3], number=number)

    async def test() -> None:
        edge = box_of(1, Sensor(32, 24, windows()), keep="newest", give_up_s=0.2)
        with pytest.raises(DeadlineExceeded):
            await asyncio.wait_for(edge.run(lambda reply: None), 30)
        at_end = len(taken)
        await asyncio.sleep(0.2)
        assert len(taken) <= at_end + 1 < 10_000

    asyncio.run(test())


def test_what_a_camera_sees_while_nobody_listens_is_dropped_and_counted() -> None:
    parts = list(recording(9).windows_by_time(WINDOW_US))

    async def test() -> None:
        async with core(HashTransport()) as (_, port):
            edge = box_of(port, live(parts), keep="newest", waiting=3)
            welcomed = edge.welcomed

            async def late(welcome: Any) -> None:
                while edge.ingest.counts.windows < 9:  # the sensor does not wait for a link
                    await asyncio.sleep(0.01)
                await welcomed(welcome)

            edge.welcomed = late
            replies = await ask(edge)
            counts = edge.ingest.counts
            assert (counts.windows, counts.dropped) == (9, 6)
            assert [reply.outcome.number for reply in replies] == [6, 7, 8]
            assert counts.events_dropped == sum(len(part) for part in parts[:6])

    asyncio.run(test())


def test_a_camera_that_breaks_ends_the_run_with_its_error() -> None:
    def windows() -> Any:
        yield from arrow_sensor(stream_of([recording(2)]), WINDOW_US).windows
        raise InputError("batch", "a step back", "none")

    async def test() -> None:
        async with core(HashTransport()) as (_, port):
            with pytest.raises(InputError, match="a step back"):
                await asyncio.wait_for(box_of(port, Sensor(32, 24, windows())).run(lambda reply: None), 30)

    asyncio.run(test())


def test_what_a_window_could_not_hold_is_counted_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensor_module, "MAX_WINDOW_EVENTS", 10)
    go_on = threading.Event()
    counted = list[int]()

    async def test() -> None:
        async with core(HashTransport()) as (_, port):
            parts = [piece for part in recording(3).windows_by_time(WINDOW_US) for piece in pieces(part, [8] * 4)]
            edge = box_of(port, live(parts, go_on))

            def hear(reply: Any) -> None:
                counted.append(edge.ingest.counts.events_dropped)
                go_on.set()

            await asyncio.wait_for(edge.run(hear), 30)

    asyncio.run(test())
    assert counted[0] == 24 and counted[-1] == 72  # of 40 events a window the last 16 stay, two pieces of 8


@pytest.mark.parametrize("change", [{"keep": "all"}, {"speed": 2.0}])
def test_a_camera_cannot_be_told_to_wait(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="a sensor cannot wait"):
        box_of(1, live([recording(1)]), **change)


def test_the_command_says_why_it_gives_up_while_the_pipe_is_open() -> None:
    options = ["edge", "-", "--server", "127.0.0.1:1", "-q", "What moves?", "--give-up-s", "0.2"]
    edge = subprocess.Popen([*COMMAND, *options], stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
    assert edge.stdin is not None and edge.stderr is not None
    try:
        batch = recording(2).to_record_batch()
        writer = pa.ipc.new_stream(edge.stdin, batch.schema)
        writer.write_batch(batch)
        edge.stdin.flush()
        assert edge.wait(30) == 1
        assert b"127.0.0.1:1" in edge.stderr.read()
    finally:
        edge.kill()


def test_the_command_reads_a_pipe_and_answers_before_it_ends(tmp_path: Path) -> None:
    parts = list(recording(4).windows_by_time(WINDOW_US))
    lines: list[Any] = []

    async def test() -> None:
        async with core(HashTransport()) as (_, port):
            options = ["edge", "-", "--server", f"127.0.0.1:{port}", "-q", "What moves?", "--json", "--keep", "join"]
            edge = subprocess.Popen(
                [*COMMAND, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()
            )
            assert edge.stdin is not None and edge.stdout is not None
            try:
                writer = pa.ipc.new_stream(edge.stdin, parts[0].to_record_batch().schema)
                for number, part in enumerate(parts):
                    await asyncio.to_thread(writer.write_batch, part.to_record_batch())
                    edge.stdin.flush()
                    if number == 1:  # which closed the first window
                        lines.append(json.loads(await asyncio.to_thread(edge.stdout.readline)))
                writer.close()
                edge.stdin.close()
                lines.extend(json.loads(line) for line in await asyncio.to_thread(edge.stdout.readlines))
                assert await asyncio.to_thread(edge.wait, 20) == 0
            finally:
                edge.kill()

    asyncio.run(asyncio.wait_for(test(), 60))
    *replies, last = lines
    assert [reply["text"] for reply in replies] == [hash_of(part) for part in parts]
    assert (last["windows"], last["dropped"]) == (4, 0)
