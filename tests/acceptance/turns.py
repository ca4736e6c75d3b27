"""`Turns`: one server or cluster at a time for all tests of this folder.

Each is a handful of processes with models in them. Two at once want the memory of both, and Ray kills what is newest
where memory runs out; one that idles still takes its share of the cores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, TypeVar

import pytest

T = TypeVar("T")
SHARED = ("light_heavy", "head")
"""Fixtures that several modules share: the modules of one come after each other."""


class Turns:
    """Whose turn it is."""

    def __init__(self) -> None:
        self._maker: Callable[[], AbstractContextManager[Any]] | None = None
        self._made: Any = None
        self._stack = ExitStack()

    def take(self, maker: Callable[[], AbstractContextManager[T]]) -> T:
        """What this maker makes: what is there, if it was made by the same; else all else ends first."""
        if self._maker is not maker:
            self.end()
            self._made = self._stack.enter_context(maker())
            self._maker = maker
        return self._made

    def end(self) -> None:
        """Nobody's."""
        self._maker = self._made = None
        self._stack.close()


def in_turns(items: Sequence[pytest.Item], is_ours: Callable[[pytest.Item], bool]) -> list[pytest.Item]:
    """The same tests; ours that share a server one after the other, so that each is started once."""

    def turn(item: pytest.Item) -> int:
        if not is_ours(item):
            return 0
        named: Sequence[str] = getattr(item, "fixturenames", ())
        return next((1 + at for at, name in enumerate(SHARED) if name in named), 1 + len(SHARED))

    return sorted(items, key=turn)
