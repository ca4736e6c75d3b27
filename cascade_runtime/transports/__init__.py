"""How a client reaches a cascade: one protocol, and the lookup of the implementations that are installed.

base.py      Transport, Remote; open_transport(target, recipe or remote)
http.py      the cascade behind an address that speaks OpenAI's chat completions
chat.py      its JSON: requests out, answers, pieces and errors in
fields.py    JSON of somebody else's, field by field
refusal.py   errors in that JSON as ours
grpc.py      the cascade behind an address that speaks cascade.proto;  grpc_wire.py  its messages, both ways
side_by_side.py  many requests to one server;  retries.py  when and how soon to ask again
session.py   one question about window after window of a live source;  windows.py  of those that wait, the newest
recent.py    what cascades started here remember of their last answers
"""

from cascade_runtime.transports.base import (
    MAX_CONCURRENCY,
    Remote,
    Transport,
    Update,
    is_remote,
    open_transport,
    transport_names,
)
from cascade_runtime.transports.recent import RecentAnswers
from cascade_runtime.transports.session import SessionTerms, SessionTransport, Window, answer_windows
from cascade_runtime.transports.windows import NewestWindows

__all__ = [
    "MAX_CONCURRENCY",
    "NewestWindows",
    "RecentAnswers",
    "Remote",
    "SessionTerms",
    "SessionTransport",
    "Transport",
    "Update",
    "Window",
    "answer_windows",
    "is_remote",
    "open_transport",
    "transport_names",
]
