"""What one stage may do to another: each looks again at what it gets.

    features    shape, type, numbers and space
    messages    blocks and verdicts that are forged or come again; a frame that lies about its length

A link lets in only who knows its secret, its epoch and its name, and is cut by a frame larger than was agreed.
"""

from __future__ import annotations

import pickle
import socket
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from attacks.memory import at_most

from cascade_runtime.channels import ChannelSpec, connect, framing, listen
from cascade_runtime.errors import ChannelClosed, ChannelError, DeadlineExceeded, FeatureSpaceError
from cascade_runtime.messages import DraftBlock, Verdict, decode, encode
from cascade_runtime.scheduling.standing import Standing
from cascade_runtime.vision.event_branch import EventView
from cascade_runtime.vision.features import VisualFeatures


def features(data: np.ndarray, **fields: Any) -> VisualFeatures:
    return VisualFeatures(data, **{"space": "tower-1", "transforms": (), "source": "abc", **fields})


def test_features_are_looked_at_again_by_the_stage_that_gets_them() -> None:
    good = features(np.ones((2, 4, 8), np.float32))
    for wrong, field in (
        (lambda: features(np.broadcast_to(np.float32(0), (1 << 10, 1 << 10, 1 << 10))), "features.nbytes"),
        (lambda: features(np.zeros((2, 4), np.float32)), "features.shape"),
        (lambda: features(np.zeros((2, 0, 8), np.float32)), "features.shape"),
        (lambda: features(np.zeros((2, 4, 8), np.int64)), "features.dtype"),
        (lambda: features(np.array([[[{}]]], dtype=object)), "features.dtype"),
        (lambda: features(np.full((2, 4, 8), np.nan, np.float32)).tensor(), "features.data"),
        (lambda: good.expect("tower-2", 8), "features.space"),
        (lambda: good.expect("tower-1", 9), "features.dim"),
        (lambda: good.choose_frames((True, True), features(good.data, source="other")), "features"),
    ):
        with at_most(16), pytest.raises(FeatureSpaceError) as caught:
            wrong()
        assert caught.value.field == field


def forged(packet: Any, **fields: Any) -> bytes:
    """What a stage that does not look itself would send."""
    false = object.__new__(type(packet))
    for name, value in (vars(packet) | fields).items():
        object.__setattr__(false, name, value)
    return pickle.dumps(false, protocol=5)


def arrived_from(sent: bytes) -> Any:
    """What Ray makes of an argument on its way."""
    return pickle.loads(sent)  # noqa: S301


def test_a_packet_that_was_never_looked_at_does_not_arrive() -> None:
    good = features(np.ones((2, 4, 8), np.float32), grid=(2, 2, 2), occupancy=0.5, density=np.ones((2, 3, 3), "f4"))
    view = EventView(np.zeros((2, 6, 6, 3), np.uint8), "abc", good)
    for packet in (good, view):
        arrived = arrived_from(pickle.dumps(packet, protocol=5))
        for name, value in vars(packet).items():
            if value is not good:
                np.testing.assert_equal(vars(arrived)[name], value)
    assert arrived_from(pickle.dumps(view)).features.occupancy == 0.5
    for packet, wrong, field in (
        (good, {"data": np.zeros((2, 4, 8), np.int64)}, "features.dtype"),
        (good, {"data": np.zeros((2, 0, 8), np.float32)}, "features.shape"),
        (good, {"density": np.zeros((2, 3, 3))}, "features.density"),
        (good, {"bfloat16": True}, "features.dtype"),
        (view, {"frames": np.zeros((6, 6, 3), np.uint8)}, "view.frames"),
        (view, {"frames": np.array([[[[{}]]]], dtype=object)}, "view.frames"),
        (view, {"density": np.zeros((2, 9), np.float32)}, "view.density"),
    ):
        sent = forged(packet, **wrong)
        with pytest.raises(FeatureSpaceError) as caught:
            arrived_from(sent)
        assert caught.value.field == field


def test_a_forged_or_replayed_block_changes_nothing() -> None:
    standing = Standing(request=7, epoch=2, stage=1, limit=50, vocab_size=100, ends=frozenset(), window=8)
    first = DraftBlock(7, 2, 0, (17, 4), (1, 1), 0)
    assert standing.on_drafts(first)
    standing.settle(standing.work(8), [17, 9, 5])  # 4 is corrected to 9
    assert standing.prefix == [17, 9]
    standing.verdict()
    for forged in (
        first,  # again, after it has been corrected
        replace(first, epoch=1, ack=1, base=2, tokens=(3,), stages=(1,)),
        replace(first, request=8, ack=1, base=2, tokens=(3,), stages=(1,)),
        replace(first, ack=1, base=2, tokens=(100,), stages=(1,)),  # no such word
        replace(first, ack=1, base=40, tokens=(3,), stages=(1,)),
        replace(first, ack=1, tokens=(16, 9, 3), stages=(1, 1, 1)),
    ):
        assert not standing.on_drafts(forged)
        assert (standing.prefix, standing.hints) == ([17, 9], [])
    said = Verdict(7, 2, 1, 0, (17, 9), (3, 2))
    standing.on_verdict(said)
    for forged in (
        replace(said, tokens=(1, 1)),  # an old number again
        replace(said, seq=2, epoch=3, tokens=(1, 1)),
        replace(said, seq=2, base=30, tokens=(1, 1)),
        replace(said, seq=2, tokens=(100, 1)),
        replace(said, seq=2, tokens=(1,) * 51, stages=(1,) * 51),
    ):
        assert not standing.on_verdict(forged) and standing.prefix == [17, 9]


def test_a_frame_that_lies_about_its_length_is_no_frame() -> None:
    honest = encode(DraftBlock(7, 0, 0, (1, 2), (1, 1), 0))
    count = honest.index(struct.pack("<I", 2))
    for bad in (
        honest[:count] + struct.pack("<I", 2**32 - 1) + honest[count + 4 :],
        honest[:-1],
        honest + b"\0",
        bytes(100),
        b"",
        pytest.importorskip("pickle").dumps({"request": 7}),
    ):
        with at_most(4), pytest.raises(ChannelError):
            decode(bad)


SPEC = ChannelSpec(backend="stream", link="light-heavy", epoch=5, secret=b"the secret of this very link")


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [({"secret": b"a guess that is long enough"}, "secret"), ({"epoch": 4}, "epoch"), ({"link": "mid-heavy"}, "link")],
)
def test_a_link_lets_in_only_who_knows_its_secret_epoch_and_name(wrong: dict[str, Any], reason: str) -> None:
    with listen(replace(SPEC, address="tcp:127.0.0.1:0")) as listener, ThreadPoolExecutor(1) as pool:
        joining = pool.submit(connect, replace(listener.spec, **wrong), 20.0)
        while not joining.done():
            with pytest.raises(DeadlineExceeded):  # nobody has come in
                listener.accept(0.05)
        assert isinstance(joining.exception(), ChannelError) and listener.refused == {reason: 1}


def test_a_link_is_cut_by_a_frame_larger_than_agreed_before_its_bytes_are_kept() -> None:
    ours, theirs = socket.socketpair()
    from cascade_runtime.channels.stream import StreamChannel

    with StreamChannel(replace(SPEC, max_frame_bytes=1024), ours) as channel, theirs, at_most(4):
        theirs.sendall(struct.pack("<I", 2**31 - 1) + bytes(1000))
        with pytest.raises(ChannelClosed, match="allowed: 1024"):
            channel.recv(5.0)
    with pytest.raises(ChannelError):
        framing.FrameParser(1024).feed(struct.pack("<I", 1025))
