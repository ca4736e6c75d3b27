"""One server at a time: whoever comes next finds the one before it ended, and no server is started twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from acceptance.served import actor_of
from acceptance.turns import SHARED, Turns, in_turns


def test_one_ends_before_another_begins_and_the_same_one_is_kept() -> None:
    told: list[str] = []

    @contextmanager
    def server() -> Iterator[str]:
        told.append("server begins")
        yield "server"
        told.append("server ends")

    @contextmanager
    def cluster() -> Iterator[str]:
        told.append("cluster begins")
        yield "cluster"
        told.append("cluster ends")

    turns = Turns()
    assert [turns.take(server), turns.take(server), turns.take(cluster)] == ["server", "server", "cluster"]
    assert told == ["server begins", "server ends", "cluster begins"]
    turns.end()
    turns.end()
    assert told[3:] == ["cluster ends"]
    assert turns.take(server) == "server" and told[4:] == ["server begins"]


def test_one_that_does_not_begin_is_tried_again_by_the_next_test() -> None:
    @contextmanager
    def broken() -> Iterator[str]:
        raise RuntimeError("it does not start")
        yield ""

    turns = Turns()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="does not start"):
            turns.take(broken)


def test_tests_of_one_server_come_together_and_others_stay_where_they_are() -> None:
    def item(name: str, *fixtures: str) -> Any:
        return SimpleNamespace(name=name, fixturenames=fixtures)

    server, cluster = SHARED
    items = [
        item("another folder's", server),
        item("a", server),
        item("b"),
        item("c", cluster),
        item("d", "tmp_path", server),
        item("e"),
        item("f", cluster),
    ]
    ordered = in_turns(items, lambda each: each.name != "another folder's")
    assert [each.name for each in ordered] == ["another folder's", "a", "d", "c", "f", "b", "e"]


def test_an_actor_is_the_same_one_whatever_it_does_now() -> None:
    names = ("ray::ServeController", "ray::ServeController.listen_for_change", "ray::ServeController.graceful_shutdown")
    assert {actor_of(name) for name in names} == {"ray::ServeController"}
