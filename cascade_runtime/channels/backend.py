"""Which way the bytes of a link travel, and the one place that opens any of them.

    backend        reaches           round trip, 64 B / 64 KB   peer death   idle reader   Ray API
    local          one process       -                          -            asleep        none
    stream         a node, unix      34 / 144 us                at once      asleep        none
    stream         across, TCP       71 / 156 us                at once      asleep        none
    object_store   one node          103 / 121 us               at once      asleep        alpha and private
    call           one Ray cluster   1,500 / 1,780 us           1-3 s        a ping/.25 s  public

Round trips are medians of `python -m benchmarks.channels` between two actors on one node (TCP over loopback), Ray 2.60,
two quiet cores of an AMD EPYC (benchmarks/results/channels.txt); a bare actor call took 660 us in the same run. Such
short times are noisy: other work on the same cores can double them. Blocked readers cost no CPU that two actors without
a link do not cost (.011 to .012 cores), but for "call" (.022).

The rule of "auto": within a node the object store, whose 70 us more than a socket are under 2 % of any round longer
than 3.5 ms, and nothing from 64 KB on. Stages quicker than that should ask for "stream". Where the object store is
full, its links carry their frames through their sockets by themselves.
"""

from __future__ import annotations

from cascade_runtime.channels import local, stream_listener
from cascade_runtime.channels.base import BACKENDS, Channel, ChannelSpec, Listener
from cascade_runtime.errors import ConfigError


def listen(spec: ChannelSpec) -> Listener:
    """Open the listening end. Hand its `.spec` to the other end's `connect`."""
    if spec.backend == "local":
        return local.LocalListener(spec)
    if spec.backend == "stream":
        return stream_listener.StreamListener(spec)
    if spec.backend == "object_store":
        from cascade_runtime.channels import object_store

        return object_store.ObjectStoreListener(spec)
    from cascade_runtime.channels import call

    return call.CallListener(spec)


def connect(spec: ChannelSpec, timeout_s: float) -> Channel:
    """Open the other end. Raises `ChannelError` when refused or nobody listens, `DeadlineExceeded`."""
    if spec.backend == "local":
        return local.connect(spec, timeout_s)
    if spec.backend == "stream":
        return stream_listener.connect(spec, timeout_s)
    if spec.backend == "object_store":
        from cascade_runtime.channels import object_store

        return object_store.connect(spec, timeout_s)
    from cascade_runtime.channels import call

    return call.connect(spec, timeout_s)


def choose_backend(requested: str, same_process: bool, same_node: bool) -> str:
    """The backend for a link whose ends lie so. "auto": local in a process, object_store on a node, else stream.

    Raises `ConfigError` when the requested one does not reach.
    """
    if requested == "auto":
        return "local" if same_process else "object_store" if same_node else "stream"
    if requested not in BACKENDS:
        raise ConfigError("channels.backend", requested, f"auto, {', '.join(BACKENDS)}")
    if requested == "local" and not same_process:
        raise ConfigError("channels.backend", requested, "object_store, stream, call or auto between processes")
    if requested == "object_store" and not same_node:
        raise ConfigError("channels.backend", requested, "stream, call or auto between nodes")
    return requested
