"""Every backend keeps the same promises: order, bound, deadlines, and an end that everybody notices."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from operator import le
from typing import Any

import pytest
from link_ends import Ends

from cascade_runtime.errors import ChannelClosed, ChannelError, DeadlineExceeded

FRAMES = [b"", b"\0", b"a" * 4096, *(bytes([k]) * (k % 60) for k in range(97))]


def test_frames_arrive_unchanged_in_order_in_both_directions_at_once(ends: Any) -> None:
    name = ends.open(max_frame_bytes=4096)
    backwards = FRAMES[::-1]
    waits = [
        ends.a.start("send_all", name, FRAMES, 20.0),
        ends.b.start("send_all", name, backwards, 20.0),
        ends.a.start("recv_all", name, len(FRAMES), 20.0),
        ends.b.start("recv_all", name, len(FRAMES), 20.0),
    ]
    _, _, at_a, at_b = [wait() for wait in waits]
    assert at_b == FRAMES
    assert at_a == backwards
    stats = ends.a.call("see", name, "stats")
    size = sum(map(len, FRAMES))
    assert (stats.frames_sent, stats.bytes_sent, stats.frames_received, stats.bytes_received, stats.refused) == (
        len(FRAMES),
        size,
        len(FRAMES),
        size,
        0,
    )
    ends.close(name)


def test_a_full_queue_refuses_loses_nothing_and_takes_more_once_read(ends: Any) -> None:
    name = ends.open(capacity=8)
    sent = [b"%d" % k for k in range(8)]
    ends.a.call("send_all", name, sent, 0.0)
    for timeout_s in (0.0, 0.05):
        with pytest.raises(DeadlineExceeded):
            ends.a.call("do", name, "send", b"too much", timeout_s)
    assert ends.a.call("see", name, "stats").refused == 2
    waiting = ends.a.start("do", name, "send", b"patient", 10.0)
    assert ends.b.call("recv_all", name, 8, 5.0) == sent
    waiting()
    assert ends.b.call("do", name, "recv", 5.0) == b"patient"
    assert ends.b.call("do", name, "recv", 0.05) is None
    ends.a.call("send_all", name, sent[:6], 5.0)  # at least 3/4 of the bound is free again
    assert ends.b.call("recv_all", name, 6, 5.0) == sent[:6]
    ends.close(name)


@pytest.mark.parametrize("capacity", [1, 3])
def test_small_bounds_never_jam(ends: Any, capacity: int) -> None:
    name = ends.open(capacity=capacity)
    for k in range(20):
        ends.a.call("do", name, "send", b"%d" % k, 5.0)
        assert ends.b.call("do", name, "recv", 5.0) == b"%d" % k
    ends.close(name)


def test_nothing_to_read_is_none_and_not_an_error(ends: Any) -> None:
    name = ends.open()
    assert ends.a.call("do", name, "recv", 0.0) is None
    assert ends.b.call("do", name, "recv", 0.05) is None
    assert ends.a.call("see", name, "closed") is False
    ends.close(name)


def test_two_ends_that_both_send_their_largest_frames_first_do_not_deadlock(ends: Any) -> None:
    largest = random.Random(3).randbytes(1 << 20)
    name = ends.open(max_frame_bytes=len(largest))
    waits = [end.start("send_all", name, [largest] * 3, 20.0) for end in (ends.a, ends.b)]
    if ends.backend == "stream":  # the kernel holds less than that: whoever reads also lets its own frames go
        time.sleep(0.1)
        for end in (ends.a, ends.b):
            assert end.call("recv_all", name, 3, 20.0) == [largest] * 3
    for wait in waits:
        wait()
    if ends.backend != "stream":
        for end in (ends.a, ends.b):
            assert end.call("recv_all", name, 3, 20.0) == [largest] * 3
    ends.close(name)


def test_a_frame_over_the_limit_is_refused_and_the_link_goes_on(ends: Any) -> None:
    name = ends.open(max_frame_bytes=100)
    with pytest.raises(ChannelError, match="101 bytes"):
        ends.a.call("do", name, "send", bytes(101), 1.0)
    ends.a.call("do", name, "send", bytes(100), 1.0)
    assert ends.b.call("do", name, "recv", 5.0) == bytes(100)
    assert ends.a.call("see", name, "stats").refused == 1
    ends.close(name)


def test_closing_wakes_the_reader_after_it_drained_what_arrived(ends: Any) -> None:
    name = ends.open()
    ends.a.call("send_all", name, [b"1", b"2"], 1.0)
    ends.a.call("do", name, "close")
    ends.a.call("do", name, "close")
    assert ends.b.call("recv_all", name, 2, 5.0) == [b"1", b"2"]
    with pytest.raises(ChannelClosed):
        ends.b.call("do", name, "recv", 5.0)
    with pytest.raises(ChannelClosed):
        ends.b.call("do", name, "send", b"3", 5.0)
    for method, args in (("recv", (1.0,)), ("send", (b"4", 1.0))):
        with pytest.raises(ChannelClosed):
            ends.a.call("do", name, method, *args)
    assert ends.b.call("see", name, "closed") is True
    ends.close(name)


def test_a_blocked_reader_wakes_when_either_end_closes(ends: Any) -> None:
    for closer in (ends.a, ends.b):
        name = ends.open()
        blocked = ends.a.start("do", name, "recv", 50.0)
        time.sleep(0.05)
        closer.call("do", name, "close")
        with pytest.raises(ChannelClosed):
            blocked()
        ends.close(name)


def test_a_blocked_sender_wakes_when_the_peer_closes(ends: Any) -> None:
    name = ends.open(capacity=1)
    ends.a.call("do", name, "send", b"1", 1.0)
    blocked = ends.a.start("do", name, "send", b"2", 50.0)
    time.sleep(0.05)
    ends.b.call("do", name, "close")
    with pytest.raises(ChannelClosed):
        blocked()
    ends.close(name)


def test_waiting_on_several_links_names_those_with_something_to_say(ends: Any) -> None:
    names = [ends.open() for _ in range(3)]
    assert ends.a.call("wait", names, 0.05) == []
    waiting = ends.a.start("wait", names, 50.0)
    time.sleep(0.05)
    ends.b.call("do", names[1], "send", b"x", 1.0)
    assert waiting() == [names[1]]
    assert ends.a.call("wait", names, 5.0) == [names[1]]  # until it is read
    assert ends.a.call("do", names[1], "recv", 0.0) == b"x"
    assert ends.a.call("wait", names, 0.0) == []
    waiting = ends.a.start("wait", names, 50.0)
    time.sleep(0.05)
    ends.b.call("do", names[2], "close")
    assert waiting() == [names[2]]
    for name in names:
        ends.close(name)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"secret": b"another secret of good length"}, "secret"),
        ({"link": "mid-heavy"}, "link"),
        ({"epoch": 6}, "epoch"),
        ({"epoch": 8}, "epoch"),
        ({"capacity": 5}, "limits"),
    ],
)
def test_a_peer_of_another_secret_link_epoch_or_limit_is_refused_and_the_right_one_still_gets_in(
    ends: Any, changed: dict[str, Any], reason: str
) -> None:
    spec = ends.a.call("listen", "door", ends.spec(epoch=7))
    accepting = ends.a.start("accept", "door", 20.0)
    with pytest.raises(ChannelError, match="refused"):
        ends.join("door", spec, **changed)
    ends.join("door", spec)
    accepting()
    assert ends.a.call("refused", "door") == {reason: 1}
    ends.b.call("do", "door", "send", b"in", 1.0)
    assert ends.a.call("do", "door", "recv", 5.0) == b"in"
    ends.a.call("stop_listening", "door")
    ends.close("door")


def test_nobody_at_the_door_is_a_deadline_and_no_door_is_an_error(ends: Any) -> None:
    spec = ends.a.call("listen", "door", ends.spec())
    with pytest.raises(DeadlineExceeded):
        ends.a.call("accept", "door", 0.05)
    ends.a.call("stop_listening", "door")
    with pytest.raises(ChannelError):
        ends.join("door", spec)


def test_opening_and_closing_leaves_no_descriptor_behind(ends: Any) -> None:
    ends.close(ends.open())
    before = ends.a.call("descriptors"), ends.b.call("descriptors")
    for _ in range(30 if ends.backend == "call" else 100):
        name = ends.open()
        ends.a.call("do", name, "send", b"left unread", 1.0)
        ends.close(name)
    allowed = [count + 3 for count in before]  # of Ray itself or the executor, not one per link
    deadline = time.monotonic() + 10
    while True:
        after = [ends.a.call("descriptors"), ends.b.call("descriptors")]
        if all(map(le, after, allowed)) or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    assert all(map(le, after, allowed)), (before, after)


@pytest.mark.ray
@pytest.mark.parametrize("backend", ["stream", "object_store", "call"])
def test_a_killed_peer_is_noticed_after_its_last_words(backend: str, mortal_ends: Callable[[str], Any]) -> None:
    ends = mortal_ends(backend)
    name = ends.open()
    pid = ends.b.call("pid")
    ends.b.call("send_all", name, [b"last", b"words"], 1.0)
    assert ends.a.call("do", name, "recv", 5.0) == b"last"
    blocked = ends.a.start("recv_all", name, 2, 10.0 if backend == "call" else 3.0)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ChannelClosed):  # and not None when the time is up
        blocked()
    assert ends.a.call("see", name, "stats").frames_received == 2
    assert ends.a.call("see", name, "closed") is True
    ends.a.call("do", name, "close")


@pytest.mark.ray
def test_object_store_slots_are_used_again_even_after_frames_were_left_unread(actor_pair: Any) -> None:
    ends = Ends("object_store", "", *actor_pair)
    ends.close(ends.open(capacity=5))
    slots = ends.a.call("slots"), ends.b.call("slots")
    for k in range(12):
        name = ends.open(capacity=5)
        ends.a.call("send_all", name, [b"a%d" % k] * (k % 6), 1.0)
        ends.b.call("send_all", name, [b"b%d" % k] * 2, 1.0)
        assert ends.a.call("do", name, "recv", 5.0) == b"b%d" % k
        ends.close(name)
    assert (ends.a.call("slots"), ends.b.call("slots")) == slots


@pytest.mark.ray
def test_a_link_superseded_before_it_was_drained_ends_and_takes_nothing_from_the_newer(actor_pair: Any) -> None:
    ends = Ends("object_store", "", *actor_pair)
    old = ends.open(capacity=6, max_frame_bytes=777)
    ends.a.call("send_all", old, [b"old"] * 3, 1.0)
    ends.a.call("do", old, "close")
    new = ends.open(capacity=6, max_frame_bytes=777)
    ends.a.call("send_all", new, [b"new"] * 3, 1.0)
    with pytest.raises(ChannelClosed):
        ends.b.call("do", old, "recv", 5.0)
    assert ends.b.call("recv_all", new, 3, 5.0) == [b"new"] * 3
    ends.b.call("do", old, "close")
    ends.close(new)


@pytest.mark.ray
@pytest.mark.parametrize("full", ["a", "b", "ab"])
def test_where_the_store_is_full_frames_go_through_the_socket(actor_pair: Any, full: str) -> None:
    ends = Ends("object_store", "", *actor_pair)
    size = 30_000 + ["a", "b", "ab"].index(full)  # of slots that no earlier link has left behind
    for end in full:
        getattr(ends, end).call("store_is_full", True)
    before = ends.a.call("slots"), ends.b.call("slots")
    try:
        name = ends.open(capacity=4, max_frame_bytes=size)
        assert [end.call("see", name, "in_store") for end in (ends.a, ends.b)] == [False, False]
        frames = [b"", b"x" * size, b"y" * (size // 2), b"z"]
        ends.a.call("send_all", name, frames, 0.0)
        with pytest.raises(DeadlineExceeded):
            ends.a.call("do", name, "send", b"too many", 0.0)
        with pytest.raises(ChannelError):
            ends.b.call("do", name, "send", b"x" * (size + 1), 0.0)
        ends.b.call("send_all", name, frames[::-1], 0.0)
        assert ends.b.call("recv_all", name, 4, 5.0) == frames
        assert ends.a.call("recv_all", name, 4, 5.0) == frames[::-1]
        ends.a.call("do", name, "close")
        with pytest.raises(ChannelClosed):
            ends.b.call("recv_all", name, 1, 5.0)
        ends.b.call("do", name, "close")
    finally:
        for end in full:
            getattr(ends, end).call("store_is_full", False)
    there = [4 if full == "b" else 0, 4 if full == "a" else 0]  # the slots of who had room wait for the next link
    assert [ends.a.call("slots") - before[0], ends.b.call("slots") - before[1]] == there
    name = ends.open(capacity=4, max_frame_bytes=size)
    assert ends.a.call("see", name, "in_store") and ends.b.call("see", name, "in_store")
    ends.a.call("send_all", name, [b"again"], 1.0)
    assert ends.b.call("do", name, "recv", 5.0) == b"again"
    ends.close(name)
