"""What a stage has to say at once travels in as few frames as the link allows, and what does not arrive is counted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from actors.neighbour import Neighbour
from actors.stage import LanguageStage
from cascade_runtime.channels import ChannelSpec
from cascade_runtime.channels.local import pair
from cascade_runtime.errors import ChannelClosed
from cascade_runtime.messages import DraftBlock, Verdict, encode
from cascade_runtime.tracing import Tracer


def block(request: int, tokens: int = 3) -> DraftBlock:
    return DraftBlock(request, 0, 0, tuple(range(tokens)), (1,) * tokens, 0)


def ends(**spec: int):
    here, there = pair(ChannelSpec(backend="local", link="light-heavy", **spec))
    light, heavy = Tracer("light"), Tracer("heavy")
    return Neighbour("heavy", here, Verdict, light), Neighbour("light", there, DraftBlock, heavy), light, heavy


def test_a_turns_messages_are_one_frame_and_both_ends_number_them_alike() -> None:
    down, up, light, heavy = ends()
    said = [block(request) for request in range(16)]
    for message in said:
        down.tell(message)
    assert list(up.take(9)) == []
    down.flush()
    assert down.channel.stats.frames_sent == 1
    assert list(up.take(1)) == said
    sent, took = light.snapshot().messages, heavy.snapshot().messages
    assert [m.number for m in sent] == [m.number for m in took] == list(range(16))
    down.flush()
    assert down.channel.stats.frames_sent == 1


def test_frames_stay_within_what_the_link_allows() -> None:
    one = len(encode(block(0)))
    down, up, *_ = ends(max_frame_bytes=3 * one + 1)
    for request in range(7):
        down.tell(block(request))
    down.flush()
    assert down.channel.stats.frames_sent == 3
    assert [message.request for message in up.take(9)] == list(range(7))


def test_what_finds_no_room_or_is_not_for_this_end_is_counted_and_lost() -> None:
    down, up, light, _ = ends(capacity=1)
    for request in (0, 1):
        down.tell(block(request))
        down.tell(block(request))
        down.flush()
    assert (down.refused, len(light.snapshot().messages)) == (2, 2)
    assert [message.request for message in up.take(9)] == [0, 0]
    down.channel.send(b"noise", 0.0)
    assert list(up.take(9)) == []
    down.channel.send(encode(Verdict(1, 0, 1, 0, (), ())) + encode(block(5)), 0.0)
    assert [message.request for message in up.take(9)] == [5]
    assert up.refused == 2
    up.channel.close()
    down.tell(block(1))
    with pytest.raises(ChannelClosed):
        down.flush()


def test_a_stage_looks_at_the_newest_of_what_was_said_of_a_request_even_as_the_link_closes() -> None:
    down, up, _, heavy = ends()
    for tokens in (1, 2, 3):
        down.tell(block(0, tokens))
        down.tell(block(1, tokens + 1))
        down.flush()
    down.channel.close()
    lost: list[object] = []
    stage: Any = SimpleNamespace(rows={7: None}, _lost=lost.append)
    taken: list[DraftBlock] = []
    heard: set[int] = set()
    LanguageStage._take(stage, up, taken.append, heard)
    assert taken == [block(0, 3), block(1, 4)]
    assert (lost, heard) == ([up], {0, 1, 7})
    assert len(heavy.snapshot().messages) == 6
