"""`Prefixes`: prompts that begin alike (many questions about one recording) compute their beginning once.

A slot that holds it, of a row that runs or of one that has ended, is copied to rows that wait for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cascade_runtime.decoding.row import Row


class Prefixes:
    """Which slot holds which prefix, and which rows wait for one."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache
        self._holds: dict[int, str] = {}  # slot -> the prefix whose keys and values lie in it, free or not
        self._wait: set[Row] = set()  # rows that hold nothing yet, and whose prefix may turn up in another slot
        self.tokens_shared = 0

    def slot(self, free: Iterable[int], prefix: str) -> int:
        """Of the free slots the one to take: one that holds the prefix, else the first."""
        return min([slot for slot in free if prefix and self._holds.get(slot) == prefix] or free)

    def admitted(self, row: Row) -> None:
        """A row has taken a slot, and its prefix may lie in another."""
        if row.prompt.prefix:
            self._wait.add(row)
            self._share(row.prompt.prefix)
        if not row.held:
            self._holds.pop(row.slot, None)

    def fed(self, row: Row) -> None:
        """A row's cache has grown, maybe beyond its prefix."""
        prefix = row.prompt.prefix
        if prefix and not row.poisoned and row.slot not in self._holds and row.held >= row.prompt.prefix_length:
            self._holds[row.slot] = prefix
            self._wait.discard(row)
            self._share(prefix)

    def released(self, row: Row) -> None:
        """A row is gone; what its slot holds stays."""
        self._wait.discard(row)

    def scrubbed(self, slot: int) -> None:
        """A slot holds nothing any more."""
        self._holds.pop(slot, None)

    def _share(self, prefix: str) -> None:
        """Copy a prefix that some slot holds to all rows that wait for it."""
        source = next((slot for slot, held in self._holds.items() if held == prefix), None)
        for row in [row for row in self._wait if source is not None and row.prompt.prefix == prefix]:
            assert source is not None
            self._wait.discard(row)
            if row.slot != source:
                self._cache.copy(source, row.slot, row.prompt.prefix_length)
                self._holds[row.slot] = prefix
            row.held = row.prompt.prefix_length
            self.tokens_shared += row.held
