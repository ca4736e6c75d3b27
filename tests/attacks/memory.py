"""`at_most`: a bound on what a process takes while it is attacked. Its peak is looked at, C libraries included."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MB = 2**20


@contextmanager
def at_most(megabytes: float) -> Iterator[None]:
    """The process takes no more than that on top of what it has, at any time within."""

    def peak() -> int:
        return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024

    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = peak()
    except OSError:  # another kernel, or a sandbox: the error is looked at all the same
        yield
        return
    yield
    assert peak() - before <= megabytes * MB
