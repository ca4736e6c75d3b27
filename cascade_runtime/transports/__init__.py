"""How a client reaches a cascade: one protocol, and the lookup of the implementations that are installed."""

from cascade_runtime.transports.base import Transport, Update, open_transport, transport_names

__all__ = ["Transport", "Update", "open_transport", "transport_names"]
