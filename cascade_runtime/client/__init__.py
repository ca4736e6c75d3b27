"""`CascadeClient`: ask questions about recordings, wherever the cascade runs.

    with CascadeClient() as client:                                     # in this process
        answer = client.generate("recording.npy", "What is moving?")
    client = CascadeClient("ray")                                       # the same on five Ray stages
    client = CascadeClient("ray://auto")                                # those on the Ray that runs on this machine
    client = CascadeClient("https://cascade.example", api_key="...")    # one that somebody else runs; grpcs:// too

    async_client.py   AsyncCascadeClient, the core
    sync_client.py    CascadeClient: the same on an event loop of its own in a background thread
    session.py        AsyncSession, Session: windows of a live source in, answers out
    recording.py      to_events: a recording from whatever a user has

For an address neither torch nor Ray is needed.
"""

from cascade_runtime.client.async_client import AsyncCascadeClient
from cascade_runtime.client.recording import EventsLike, to_events
from cascade_runtime.client.session import AsyncSession, Session
from cascade_runtime.client.sync_client import CascadeClient

__all__ = ["AsyncCascadeClient", "AsyncSession", "CascadeClient", "EventsLike", "Session", "to_events"]
