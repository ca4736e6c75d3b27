"""The stage that stands for drafters on edge boxes: what it passes on, under which numbers, and what it refuses."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from toy_family import edge_recipe, write_toy_family

from actors.edge_relay import EARLY_BLOCKS, EdgeRelay
from cascade_runtime.channels import Channel, ChannelSpec, connect
from cascade_runtime.config import SamplingParams
from cascade_runtime.errors import StageDied, StageError
from cascade_runtime.messages import DraftBlock, Verdict, decode, encode

NOTHING: Any = None


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_family(tmp_path_factory.mktemp("toys"))


@pytest.fixture
def ends(family: Path) -> Iterator[tuple[EdgeRelay, Channel]]:
    """A relay, and what its next stage holds of their link."""
    relay = EdgeRelay(edge_recipe(family, ["noisy"], {"upstream_s": 0.05}))
    spec = relay.listen(ChannelSpec(backend="local", link="level0-target", epoch=4))
    with ThreadPoolExecutor(1) as pool:
        linked = pool.submit(relay.link, None, 10.0)
        channel = connect(spec, 10.0)
        linked.result(10.0)
    yield relay, channel
    relay.stop()


def admit(relay: EdgeRelay, handle: int, name: str) -> None:
    relay.admit(handle, name, "What moves?", NOTHING, SamplingParams())


def block(*ids: int, **changes: Any) -> bytes:
    fields = {"request": 0, "epoch": 0, "base": 0, "tokens": ids, "stages": (2,) * len(ids), "ack": 0}
    return encode(DraftBlock(**{**fields, **changes}))


def next_block(channel: Channel) -> DraftBlock:
    frame = channel.recv(10.0)
    assert frame is not None
    (message,) = decode(frame)
    assert isinstance(message, DraftBlock)
    return message


def until(reached: Callable[[], bool]) -> None:
    end = time.monotonic() + 10.0
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.005)


def refused(relay: EdgeRelay) -> int:
    return relay.stats()["refused_messages"]


def test_a_block_is_passed_on_under_the_pipelines_number_and_epoch(ends: tuple[EdgeRelay, Channel]) -> None:
    relay, channel = ends
    relay.drafted([("a", block(1)), ("a", block(1, 2, pace_us=90_000_000, work_us=7))])  # before it is admitted
    admit(relay, 12, "a")
    assert next_block(channel) == DraftBlock(12, 4, 0, (1, 2), (1, 1), 0, pace_us=50_000)
    relay.drafted([("a", block(1, 2, 3, ack=5))])
    assert next_block(channel).ack == 5
    assert relay.stats()["passes"] == 2 and relay.pulse().rows == 1


def test_what_is_no_block_of_a_chain_is_refused(ends: tuple[EdgeRelay, Channel]) -> None:
    relay, channel = ends
    admit(relay, 12, "a")
    frames = [b"", b"noise", block(1) + block(2), block(1, 2, parents=(-1, 0)), encode(Verdict(0, 0, 1, 0, (), ()))]
    relay.drafted([("a", frame) for frame in frames])
    assert refused(relay) == len(frames)
    for number in range(EARLY_BLOCKS + 3):
        relay.drafted([(f"stranger-{number}", block(1))])
    until(lambda: refused(relay) == len(frames) + 3)  # of those never admitted only so many are kept
    relay.drafted([("a", block(9))])
    assert next_block(channel).tokens == (9,)


def test_verdicts_are_handed_out_newest_first_come_and_of_this_links_epoch(ends: tuple[EdgeRelay, Channel]) -> None:
    relay, channel = ends
    relay.release(99)
    admit(relay, 12, "a")
    admit(relay, 13, "b")
    for seq in (1, 2):
        channel.send(encode(Verdict(12, 4, seq, 0, (5,), (2,))) + encode(Verdict(13, 4, seq, 0, (6,), (2,))), 1.0)
    channel.send(encode(Verdict(12, 3, 9, 0, (7,), (2,))) + encode(Verdict(99, 4, 9, 0, (7,), (2,))), 1.0)
    until(lambda: refused(relay) == 2)
    told = {name: decode(frame) for name, frame in relay.verdicts(5.0)}
    assert told == {"a": [Verdict(12, 4, 2, 0, (5,), (2,))], "b": [Verdict(13, 4, 2, 0, (6,), (2,))]}
    assert relay.verdicts(0.01) == []


def test_a_verdict_that_overtakes_its_admission_is_kept(ends: tuple[EdgeRelay, Channel]) -> None:
    relay, channel = ends
    channel.send(encode(Verdict(12, 4, 1, 0, (5,), (2,))), 1.0)
    until(lambda: bool(relay._ahead))
    assert relay.verdicts(0.01) == []
    admit(relay, 12, "a")
    assert [(name, decode(frame)) for name, frame in relay.verdicts(5.0)] == [("a", [Verdict(12, 4, 1, 0, (5,), (2,))])]


def test_a_request_that_is_released_is_forgotten_and_not_taken_in_again(ends: tuple[EdgeRelay, Channel]) -> None:
    relay, channel = ends
    admit(relay, 12, "a")
    channel.send(encode(Verdict(12, 4, 1, 0, (5,), (2,))), 1.0)
    until(lambda: bool(relay._told))
    assert relay.release(12) is not None and relay.release(12) is None
    assert relay.verdicts(0.01) == [] and relay.pulse().rows == 0
    with pytest.raises(StageError, match="released"):
        admit(relay, 12, "a")
    admit(relay, 20, "b")
    relay.evict(21)
    with pytest.raises(StageError, match="released"):
        admit(relay, 19, "c")
    assert relay.stats()["free_slots"] == relay.stats()["slots"]


def test_when_the_next_stage_is_another_the_requests_inside_go_on_without_their_boxes(
    ends: tuple[EdgeRelay, Channel],
) -> None:
    relay, _ = ends
    admit(relay, 12, "a")
    spec = relay.listen(ChannelSpec(backend="local", link="level0-target", epoch=5))
    with ThreadPoolExecutor(1) as pool:
        joined = pool.submit(relay.join_downstream, 10.0)
        channel = connect(spec, 10.0)
        joined.result(10.0)
    assert relay.pulse().downstream == {0: 5}
    relay.drafted([("a", block(1))])
    admit(relay, 13, "b")
    relay.drafted([("b", block(2))])
    assert next_block(channel) == DraftBlock(13, 5, 0, (2,), (1,), 0)


def test_who_waits_for_verdicts_is_told_when_the_relay_ends(ends: tuple[EdgeRelay, Channel]) -> None:
    relay, _ = ends
    problems: list[BaseException] = []

    def wait() -> None:
        try:
            relay.verdicts(60.0)
        except StageDied as error:
            problems.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    relay.stop()
    waiting.join(10.0)
    assert len(problems) == 1
    with pytest.raises(StageDied):
        relay.drafted([])
