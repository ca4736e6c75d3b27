"""What a stage has loaded is left out of garbage collections."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
from toy_family import edge_recipe, write_toy_family

from actors.edge_relay import EdgeRelay
from actors.heap import keep_heap
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
        relay.link(None, 0.01)  # nobody comes: no loop
    assert is_walked(loaded)
    relay._start()
    relay.stop()
    assert not is_walked(loaded)
