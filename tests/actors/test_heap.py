"""What a stage has loaded is left out of garbage collections."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
from threaded_pipeline import threaded_pipeline
from toy_family import toy_recipe, write_toy_family

from actors.heap import keep_heap


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


def test_stages_that_run_have_kept_what_they_found(family: Path, thawed: None) -> None:
    with threaded_pipeline(toy_recipe(family, ["noisy"])):
        assert gc.get_freeze_count()
