"""Few arenas of malloc: what a thread frees, the others use again.

glibc gives threads arenas of their own, eight for every core, and a freed piece returns to its own one only. Ray's
threads and an actor's, a hundred in a controller, each fill theirs with what calls need: all processes of an
idle pipeline gained 4.8 MB in a minute of pulses, with two arenas .15 MB (`python -m benchmarks.arenas`).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Generator
from contextlib import contextmanager

VARIABLE, ARENAS = "MALLOC_ARENA_MAX", 2
_M_ARENA_MAX = -8  # <malloc.h>


def keep_few_arenas() -> None:
    """In this process, from now on; for one that is ours. Does nothing where somebody has set the variable, or where
    the C library is another.
    """
    if VARIABLE not in os.environ:
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_ARENA_MAX, ARENAS)


@contextmanager
def few_arenas_of_children() -> Generator[None]:
    """In the processes that are started meanwhile, and theirs; as somebody has set the variable, where it is set."""
    if VARIABLE in os.environ:
        yield
        return
    os.environ[VARIABLE] = str(ARENAS)
    try:
        yield
    finally:
        del os.environ[VARIABLE]
