"""Two ends of a link behind the same calls, in this process or in two Ray actors."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from cascade_runtime.channels import ChannelSpec, connect, listen, wait_any


class End:
    """Holds channels by name and calls them: the same class serves in this process and as a Ray actor."""

    def __init__(self) -> None:
        self.channels: dict[str, Any] = {}
        self.listeners: dict[str, Any] = {}

    def listen(self, name: str, spec: ChannelSpec) -> ChannelSpec:
        self.listeners[name] = listen(spec)
        return self.listeners[name].spec

    def accept(self, name: str, timeout_s: float) -> None:
        self.channels[name] = self.listeners[name].accept(timeout_s)

    def refused(self, name: str) -> dict[str, int]:
        return dict(self.listeners[name].refused)

    def stop_listening(self, name: str) -> None:
        self.listeners.pop(name).close()

    def connect(self, name: str, spec: ChannelSpec, timeout_s: float) -> None:
        self.channels[name] = connect(spec, timeout_s)

    def do(self, name: str, method: str, *args: Any) -> Any:
        return getattr(self.channels[name], method)(*args)

    def send_all(self, name: str, frames: list[bytes], timeout_s: float) -> None:
        for frame in frames:
            self.channels[name].send(frame, timeout_s)

    def recv_all(self, name: str, count: int, timeout_s: float) -> list[bytes | None]:
        return [self.channels[name].recv(timeout_s) for _ in range(count)]

    def see(self, name: str, attribute: str) -> Any:
        return getattr(self.channels[name], attribute)

    def wait(self, names: list[str], timeout_s: float) -> list[str]:
        found = wait_any([self.channels[name] for name in names], timeout_s)
        return [name for name in names if self.channels[name] in found]

    def descriptors(self) -> int:
        return len(os.listdir("/proc/self/fd"))

    def slots(self) -> int:
        """Objects that this process keeps in the store for links that are closed."""
        from cascade_runtime.channels import object_store

        return sum(map(len, object_store._pool._free.values()))

    def store_is_full(self, full: bool) -> None:
        """From now on no object fits the store of this process, or they do again."""
        from cascade_runtime.channels import object_store
        from cascade_runtime.errors import CapacityError

        def refuse(size_bytes: int) -> Any:
            raise CapacityError(f"the object store has no room for a slot of {size_bytes} bytes")

        if not hasattr(object_store, "_real"):
            object_store._real = object_store._new_object  # type: ignore[attr-defined]
        object_store._new_object = refuse if full else object_store._real  # type: ignore[attr-defined]

    def pid(self) -> int:
        return os.getpid()


class Proxy:
    """Starts a call on an end and hands out a function that waits for its result."""

    def __init__(self, start: Callable[..., Callable[[], Any]]) -> None:
        self.start = start

    def call(self, method: str, *args: Any) -> Any:
        return self.start(method, *args)()


class Ends:
    """Two ends, `a` listening and `b` connecting, and how to open links between them."""

    def __init__(self, backend: str, address: str, a: Proxy, b: Proxy) -> None:
        self.backend, self.address, self.a, self.b = backend, address, a, b
        self._count = 0

    def spec(self, **fields: Any) -> ChannelSpec:
        return ChannelSpec(
            **{"backend": self.backend, "link": "light-mid", "address": self.address, "capacity": 4} | fields
        )

    def open(self, **fields: Any) -> str:
        """Open a link; its name at both ends."""
        self._count += 1
        name = f"link{self._count}"
        spec = self.a.call("listen", name, self.spec(**fields))
        accepting = self.a.start("accept", name, 10.0)
        self.b.call("connect", name, spec, 10.0)
        accepting()
        self.a.call("stop_listening", name)
        return name

    def join(self, name: str, spec: ChannelSpec, **changed: Any) -> None:
        self.b.call("connect", name, replace(spec, **changed), 10.0)

    def close(self, name: str) -> None:
        self.a.call("do", name, "close")
        self.b.call("do", name, "close")
