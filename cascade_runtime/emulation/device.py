"""`EmulatedDevice`: where passes take as long as a profile says, and nothing is computed.

A pass has an absolute deadline. The device sleeps until shortly before it and watches the clock for the rest, so a
pass ends on time wherever a core is free, and burns next to none of it. One pass runs at a time. A device with a name
("emulated:gpu0") is shared by all processes of this machine that name it, through a file lock that the kernel frees
when a process dies: whole passes take turns, as kernels of several processes do on one GPU. Nothing is shared inside a
pass, and who is next is not promised.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from cascade_runtime.errors import ConfigError

_SPIN_S = 100e-6  # a sleep may overrun by about this much; so long the clock is watched instead


class EmulatedDevice:
    """One device. `clock` and `sleep` are seconds of a monotonic clock, and how to wait for some."""

    def __init__(
        self,
        device: str = "emulated",
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.name = device
        self._clock, self._sleep = clock, sleep
        self._turn = threading.Lock()
        shared = device.partition(":")[2]
        self._lock_file = _lock_file(shared) if shared else None

    @contextmanager
    def busy(self, seconds: float) -> Generator[None]:
        """Occupy the device for so long; what happens inside is part of that time, not on top of it."""
        with self._turn, self._shared():
            deadline = self._clock() + seconds
            yield
            self._wait_until(deadline)

    def _wait_until(self, deadline: float) -> None:
        left = deadline - self._clock()
        if left > _SPIN_S:
            self._sleep(left - _SPIN_S)
        while self._clock() < deadline:
            pass  # even a sleep of 0 takes half of what is left

    @contextmanager
    def _shared(self) -> Generator[None]:
        """Hold the device against other processes."""
        if self._lock_file is None:
            yield
            return
        fcntl.flock(self._lock_file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._lock_file, fcntl.LOCK_UN)

    def __del__(self) -> None:
        if getattr(self, "_lock_file", None) is not None:
            os.close(self._lock_file)  # type: ignore[arg-type]


class InstantDevice(EmulatedDevice):
    """A device that takes no time: for the engine, where only tokens matter."""

    @contextmanager
    def busy(self, seconds: float) -> Generator[None]:
        """Nothing to wait for."""
        yield


def _lock_file(name: str) -> int:
    """A descriptor of its own for the device's lock file, which belongs to this user alone."""
    folder = Path(tempfile.gettempdir()) / f"cascade-emulated-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise ConfigError("device", str(folder), "a folder of this user's own, for locks of emulated devices")
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(folder / f"{name}.lock", flags, 0o600)
