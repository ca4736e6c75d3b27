"""Links between neighbouring stages: bounded, duplex, opaque frames (`base`), over several backends (`backend`)."""

from cascade_runtime.channels.backend import choose_backend, connect, listen
from cascade_runtime.channels.base import Channel, ChannelSpec, ChannelStats, Listener, wait_any

__all__ = ["Channel", "ChannelSpec", "ChannelStats", "Listener", "choose_backend", "connect", "listen", "wait_any"]
