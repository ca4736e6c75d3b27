"""Only a peer that knows the secret, of this link and epoch, gets in, and the secret is never shown."""

from __future__ import annotations

import pickle
import socket
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_runtime.channels import ChannelSpec, choose_backend, connect, framing, hello, listen
from cascade_runtime.channels.stream import StreamChannel
from cascade_runtime.errors import ChannelClosed, ConfigError, DeadlineExceeded

SPEC = ChannelSpec(backend="stream", link="light-mid", epoch=3, secret=b"sixteen bytes or more")


def stranger(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(address.removeprefix("unix:"))
    sock.settimeout(5)
    return sock


def test_the_secret_is_neither_sent_nor_shown_and_a_spec_survives_the_control_plane() -> None:
    challenged = hello.challenge()
    said = hello.hello(SPEC, challenged)
    assert said is not None
    assert SPEC.secret not in said + hello.welcome(SPEC, challenged, said)
    assert "sixteen" not in repr(SPEC)
    assert pickle.loads(pickle.dumps(SPEC)) == SPEC  # noqa: S301 our own bytes


def test_a_recorded_hello_is_worthless_against_the_next_challenge() -> None:
    first, second = hello.challenge(), hello.challenge()
    said = hello.hello(SPEC, first)
    assert said is not None
    assert hello.refusal(SPEC, first, said) is None
    assert hello.refusal(SPEC, second, said) == "secret"


@settings(deadline=None)
@given(st.integers(0, hello.HELLO_BYTES - 1), st.integers(1, 255))
def test_no_byte_of_a_hello_can_be_changed(at: int, flip: int) -> None:
    challenged = hello.challenge()
    said = bytearray(hello.hello(SPEC, challenged) or b"")
    said[at] ^= flip
    assert hello.refusal(SPEC, challenged, bytes(said)) in ("magic", "secret")


def test_the_listener_too_must_know_the_secret() -> None:
    challenged = hello.challenge()
    said = hello.hello(SPEC, challenged) or b""
    forged = hello.welcome(replace(SPEC, secret=b"a guess of sixteen bytes"), challenged, said)
    assert not hello.welcomed(SPEC, challenged, said, forged)
    assert hello.welcomed(SPEC, challenged, said, hello.welcome(SPEC, challenged, said))


@settings(max_examples=40, deadline=None)
@given(st.binary(min_size=1, max_size=400))
def test_hostile_bytes_at_the_door_are_counted_and_the_door_stays_open(noise: bytes) -> None:
    with listen(SPEC) as listener, stranger(listener.spec.address) as noisy, ThreadPoolExecutor(1) as pool:
        noisy.send(noise)
        noisy.shutdown(socket.SHUT_WR)
        joining = pool.submit(connect, listener.spec, 5.0)
        with listener.accept(5.0) as a, joining.result() as b:
            b.send(b"hello", 1.0)
            assert a.recv(5.0) == b"hello"
            with pytest.raises(DeadlineExceeded):
                listener.accept(0.02)
            assert sum(listener.refused.values()) == 1


def test_silent_strangers_do_not_keep_the_true_peer_out() -> None:
    with listen(SPEC) as listener, ThreadPoolExecutor(1) as pool:
        silent = [stranger(listener.spec.address) for _ in range(5)]
        joining = pool.submit(connect, listener.spec, 5.0)
        listener.accept(5.0).close()
        assert not listener.refused  # none of them had to be given up first
        joining.result().close()
        for sock in silent:
            sock.close()


def test_the_door_is_private_to_its_user_and_gone_after_close() -> None:
    with listen(SPEC) as listener:
        folder = Path(listener.spec.address.removeprefix("unix:")).parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not folder.exists()


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=1, max_size=600))
def test_hostile_bytes_on_an_open_link_end_it_or_are_frames_within_the_limits(noise: bytes) -> None:
    ours, theirs = socket.socketpair()
    spec = replace(SPEC, capacity=4, max_frame_bytes=64)
    with StreamChannel(spec, ours) as channel, theirs:
        theirs.sendall(noise)
        theirs.shutdown(socket.SHUT_WR)
        received = []
        with pytest.raises(ChannelClosed):
            while True:
                received.append(channel.recv(1.0))
        assert all(frame is not None and len(frame) <= 64 for frame in received)


@pytest.mark.parametrize(
    ("bytes_sent", "why"),
    [
        (framing.frame(bytes(65)), "65 bytes"),
        (framing.credit(1), "more than it took"),
        (framing.frame(b"x") * 5, "more"),
    ],
)
def test_a_peer_that_breaks_the_rules_is_cut_off_with_the_reason(bytes_sent: bytes, why: str) -> None:
    ours, theirs = socket.socketpair()
    with StreamChannel(replace(SPEC, capacity=4, max_frame_bytes=64), ours) as channel, theirs:
        theirs.sendall(bytes_sent)
        with pytest.raises(ChannelClosed, match=why):
            channel.recv(1.0)


def test_a_frame_stuck_half_way_is_finished_by_whatever_uses_the_link_next() -> None:
    spec = replace(SPEC, capacity=4, max_frame_bytes=8 << 20)
    ours, theirs = socket.socketpair()
    with StreamChannel(spec, ours) as a, StreamChannel(spec, theirs) as b, ThreadPoolExecutor(1) as pool:
        frame = bytes(8 << 20)
        a.send(frame, 0.0)  # taken, though the kernel holds a fraction of it
        with pytest.raises(DeadlineExceeded):
            a.send(b"second", 0.0)
        reading = pool.submit(b.recv, 10.0)
        while not reading.done():
            a.recv(0.05)
        assert reading.result() == frame


def test_impossible_specs_name_the_field() -> None:
    for field, value in (
        ("backend", "carrier pigeon"),
        ("epoch", -1),
        ("capacity", 0),
        ("max_frame_bytes", 1 << 40),
        ("secret", b"short"),
    ):
        with pytest.raises(ConfigError) as caught:
            replace(SPEC, **{field: value})
        assert caught.value.field == f"channel.{field}"
    with pytest.raises(ConfigError):
        listen(replace(SPEC, address="udp:1.2.3.4:5"))


def test_auto_takes_the_shortest_way_that_reaches_and_a_wish_that_does_not_reach_is_refused() -> None:
    assert choose_backend("auto", same_process=True, same_node=True) == "local"
    assert choose_backend("auto", same_process=False, same_node=True) == "object_store"
    assert choose_backend("auto", same_process=False, same_node=False) == "stream"
    assert choose_backend("stream", same_process=True, same_node=True) == "stream"
    assert choose_backend("call", same_process=False, same_node=False) == "call"
    for wish, same_node in (("local", True), ("object_store", False), ("telegraph", True)):
        with pytest.raises(ConfigError):
            choose_backend(wish, same_process=False, same_node=same_node)
