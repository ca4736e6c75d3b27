"""What an actor's heap keeps: all that it has loaded, and nothing of what it has done with.

    keep_heap()     once, when it has loaded: no later garbage collection walks that
    tidy_heap()     with every pulse: a full collection now and then, which is short since that is left out

`tuple(x for x in y)` takes its memory from one of CPython's lists of freed tuples and returns it to another, by length,
until there are 2,000 on it; for all lengths these are megabytes. Only a full collection empties them, and a process
that makes no cycles has none by itself.
"""

from __future__ import annotations

import gc
import time

_TIDY_S = 10.0
_SHARE = 1e-3  # of the time, at most
_due_at = 0.0


def keep_heap() -> None:
    """Leave all that is there now out of every later garbage collection: a full one walks whatever the libraries have
    made, while every request inside waits. Once per process, which is meant to be one actor's.
    """
    if not gc.get_freeze_count():
        gc.collect()  # garbage that is frozen stays for good
        gc.freeze()


def tidy_heap() -> None:
    """A full collection where there was none from here for a while, and where the heap is kept. Whatever it takes, a
    thousand times as long passes before the next one: there may be more in a process than an actor.
    """
    global _due_at  # one heap, one clock
    began = time.monotonic()
    if began >= _due_at and gc.get_freeze_count():
        gc.collect()
        now = time.monotonic()
        _due_at = now + max(_TIDY_S, (now - began) / _SHARE)
