"""Frames and credits survive any cutting of the stream; an impossible length is refused before its bytes are kept."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_runtime.channels import framing
from cascade_runtime.errors import ChannelError

ITEMS = st.lists(st.one_of(st.binary(max_size=300), st.integers(0, 2**31 - 1)), max_size=20)


def test_the_wire_is_what_the_docstring_says() -> None:
    assert (framing.credit(2) + framing.frame(b"abc")).hex() == "0200008003000000616263"


@settings(max_examples=60, deadline=None)
@given(ITEMS, st.lists(st.integers(0, 7000), max_size=30))
def test_any_cutting_of_the_stream_gives_the_same_frames_and_credits(items: list[bytes | int], cuts: list[int]) -> None:
    stream = b"".join(framing.credit(i) if isinstance(i, int) else framing.frame(i) for i in items)
    parser = framing.FrameParser(300)
    frames: list[bytes] = []
    credits = 0
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    for start, end in pairwise(edges):
        more, granted = parser.feed(stream[start:end])
        frames += more
        credits += granted
    assert frames == [item for item in items if isinstance(item, bytes)]
    assert credits == sum(item for item in items if isinstance(item, int))


@settings(max_examples=60, deadline=None)
@given(st.integers(301, 2**31 - 1))
def test_a_length_over_the_limit_is_refused_from_its_four_bytes_alone(length: int) -> None:
    with pytest.raises(ChannelError, match=str(length)):
        framing.FrameParser(300).feed(struct.pack("<I", length))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=80), max_size=8))
def test_hostile_bytes_give_frames_within_the_limit_or_a_channel_error(pieces: list[bytes]) -> None:
    parser = framing.FrameParser(64)
    try:
        for piece in pieces:
            frames, credits = parser.feed(piece)
            assert all(len(frame) <= 64 for frame in frames)
            assert credits >= 0
    except ChannelError:
        pass
    assert len(parser._buffer) <= 64 + 4 + 80
