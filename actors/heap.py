"""`keep_heap`: what an actor has loaded is no garbage."""

from __future__ import annotations

import gc


def keep_heap() -> None:
    """Leave all that is there now out of every later garbage collection: a full one walks whatever the libraries have
    made, while every request inside waits. Once per process, which is meant to be one actor's.
    """
    if not gc.get_freeze_count():
        gc.collect()  # garbage that is frozen stays for good
        gc.freeze()
