"""`Pulse`: what every stage says when it is asked whether it is alive."""

from __future__ import annotations

from dataclasses import dataclass

from actors.heap import tidy_heap
from actors.host import process


@dataclass(frozen=True)
class Pulse:
    """host, pid: where it runs, see `actors.host`. busy_s: how long its loop, or the oldest call inside, has been at
    one thing; 0 where nothing is done. upstream, downstream: the epochs of a language stage's links, None for one that
    is down. rows: requests inside. peak_bytes: the most memory its process has held.
    """

    host: str
    pid: int
    peak_bytes: int = 0
    busy_s: float = 0.0
    upstream: int | None = None
    downstream: int | None = None
    rows: int = 0

    @staticmethod
    def here(busy_s: float = 0.0, upstream: int | None = None, downstream: int | None = None, rows: int = 0) -> Pulse:
        """Of this process, whose heap is tidied on this occasion."""
        tidy_heap()
        where = process("cpu")
        here = str(where["host"]), int(where["pid"]), int(where["peak_bytes"])
        return Pulse(*here, busy_s, upstream, downstream, rows)
