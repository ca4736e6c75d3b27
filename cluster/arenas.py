"""Few arenas of malloc, and no caches of threads: what a thread frees, the others use again.

glibc gives threads arenas of their own, eight for every core, and a freed piece returns to its own one only. Ray's
threads and an actor's, a hundred in a controller, each fill theirs with what calls need: all processes of an
idle pipeline gained 4.8 MB in a minute of pulses, with two arenas .15 MB (`python -m benchmarks.arenas`).

Besides, every thread keeps up to seven freed pieces of each of 64 sizes for itself, and a hundred threads take hours to
have seen them all: a controller that had answered 200 requests took 4.2 MB more for the next 400, without those caches
1.4 MB (`python -m benchmarks.arenas --load 600`).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Generator
from contextlib import contextmanager

ARENAS = 2
VARIABLE, TUNABLES = "MALLOC_ARENA_MAX", "GLIBC_TUNABLES"
NO_CACHES = "glibc.malloc.tcache_count=0"
_M_ARENA_MAX = -8  # <malloc.h>


def keep_few_arenas() -> None:
    """In this process, from now on; for one that is ours. Does nothing where somebody has set the variable, or where
    the C library is another. Caches of threads can only be left out where a process starts.
    """
    if VARIABLE not in os.environ:
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_ARENA_MAX, ARENAS)


@contextmanager
def lean_malloc_of_children() -> Generator[None]:
    """In the processes that are started meanwhile, and theirs; what somebody has set stays as it is."""
    ours = {VARIABLE: str(ARENAS), TUNABLES: NO_CACHES}
    added = [name for name in ours if name not in os.environ]
    os.environ.update((name, ours[name]) for name in added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
