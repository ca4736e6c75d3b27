"""Links between neighbouring stages: bounded, duplex, opaque frames (`base`), over several backends (`backend`).

local          two queues in one process
stream         sockets: `stream_listener` lets in, `framing` cuts
object_store   Ray's object store            call   Ray actor calls
inbox, inbox_channel   the receiving half where somebody else's thread delivers;  wake   how a reader is woken
hello          how both ends prove that they belong together
"""

from cascade_runtime.channels.backend import choose_backend, connect, listen
from cascade_runtime.channels.base import Channel, ChannelSpec, ChannelStats, Listener, wait_any

__all__ = ["Channel", "ChannelSpec", "ChannelStats", "Listener", "choose_backend", "connect", "listen", "wait_any"]
