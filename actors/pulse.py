"""`Pulse`: what every stage says when it is asked whether it is alive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from actors.heap import tidy_heap
from actors.host import process


@dataclass(frozen=True)
class Pulse:
    """host, pid: where it runs, see `actors.host`. busy_s: how long its loop, or the oldest call inside, has been at
    one thing; 0 where nothing is done. upstream, downstream: the epochs of a language stage's links that are there, by
    replica next door. rows: requests inside. peak_bytes: the most memory its process has held.
    """

    host: str
    pid: int
    peak_bytes: int = 0
    busy_s: float = 0.0
    upstream: Mapping[int, int] = field(default_factory=dict)
    downstream: Mapping[int, int] = field(default_factory=dict)
    rows: int = 0

    @staticmethod
    def here(
        busy_s: float = 0.0,
        upstream: Mapping[int, int] | None = None,
        downstream: Mapping[int, int] | None = None,
        rows: int = 0,
    ) -> Pulse:
        """Of this process, whose heap is tidied on this occasion."""
        tidy_heap()
        where = process("cpu")
        here = str(where["host"]), int(where["pid"]), int(where["peak_bytes"])
        return Pulse(*here, busy_s, upstream or {}, downstream or {}, rows)
