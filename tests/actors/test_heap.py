"""What a stage has loaded is left out of garbage collections, and what it has done with is not kept."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from toy_family import edge_recipe, write_toy_family

from actors import heap
from actors.edge_relay import EdgeRelay
from actors.heap import keep_heap, tidy_heap
from actors.pulse import Pulse
from cascade_runtime.channels import ChannelSpec
from cascade_runtime.errors import CascadeError


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_family(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def thawed() -> Iterator[None]:
    gc.unfreeze()
    yield
    gc.unfreeze()


def is_walked(thing: object) -> bool:
    return any(each is thing for each in gc.get_objects())


def test_what_was_there_is_not_walked_and_what_comes_later_is(thawed: None) -> None:
    before = ["loaded"]
    assert is_walked(before)
    keep_heap()
    assert not is_walked(before)
    after = ["made for a request"]
    keep_heap()  # another stage of the same process
    assert is_walked(after)


def test_a_stages_loop_keeps_what_it_starts_with(family: Path, thawed: None) -> None:
    relay = EdgeRelay(edge_recipe(family, ["noisy"], {"start_s": 5.0}))
    relay.listen(ChannelSpec(backend="local", link="level0-target"))
    loaded = relay.recipe.stages
    assert is_walked(loaded)
    with pytest.raises(CascadeError):
        relay.link((), 0.01)  # nobody comes: no loop
    assert is_walked(loaded)
    relay._start()
    relay.stop()
    assert not is_walked(loaded)


def pile_up() -> int:
    """Blocks of memory that the interpreter keeps after so many tuples of one length came and went."""
    before = sys.getallocatedblocks()
    for _ in range(1500):
        tuple(number for number in range(13))
    return sys.getallocatedblocks() - before


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="lists of freed tuples work otherwise since")
def test_pulses_give_back_what_the_interpreter_keeps_of_freed_tuples(
    thawed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    gc.collect()
    keep_heap()
    monkeypatch.setattr(heap, "_due_at", float("-inf"))
    assert pile_up() > 1400
    before = sys.getallocatedblocks()
    Pulse.here()
    assert sys.getallocatedblocks() < before - 1400
    assert pile_up() > 1400
    before = sys.getallocatedblocks()
    Pulse.here()  # not with each of them
    assert sys.getallocatedblocks() > before - 100


def test_a_heap_that_is_not_kept_is_not_walked_all_the_time(thawed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    collected = list[int]()
    monkeypatch.setattr(gc, "collect", lambda: collected.append(1))
    monkeypatch.setattr(heap, "_due_at", float("-inf"))
    tidy_heap()
    assert not collected
    gc.freeze()
    tidy_heap()
    tidy_heap()
    assert collected == [1]


def test_tidying_takes_a_thousandth_of_the_time_at_most(thawed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(heap.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(heap, "_due_at", 0.0)
    collected = list[float]()

    def slowly() -> None:
        collected.append(now[0])
        now[0] += 0.25

    monkeypatch.setattr(gc, "collect", slowly)
    gc.freeze()
    for at in (100.0, 101.0, 349.0, 350.3):
        now[0] = at
        tidy_heap()
    assert collected == [100.0, 350.3]
