"""How a client reaches a cascade: one protocol, and the lookup of the implementations that are installed.

base.py      Transport, Remote; open_transport(target, recipe or remote)
http.py      the cascade behind an address that speaks OpenAI's chat completions
chat.py      its JSON: requests out, answers, pieces and errors in
fields.py    JSON of somebody else's, field by field
refusal.py   errors in that JSON as ours
grpc.py      the cascade behind an address that speaks cascade.proto;  grpc_wire.py  its messages, both ways
side_by_side.py  many requests at a time as one stream;  retries.py  when and how soon to ask a server again
told.py      what of an answer was passed on, where it begins anew
session.py   one question about window after window of a live source;  windows.py  of those that wait, the newest
recent.py    what cascades started here remember of their last answers
replicas.py  several cascades behind one front
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
from cascade_runtime.transports.replicas import Replicas
from cascade_runtime.transports.session import SessionTerms, SessionTransport, Window, answer_windows
from cascade_runtime.transports.side_by_side import Tell, side_by_side
from cascade_runtime.transports.told import Told
from cascade_runtime.transports.windows import NewestWindows

__all__ = [
    "MAX_CONCURRENCY",
    "NewestWindows",
    "RecentAnswers",
    "Remote",
    "Replicas",
    "SessionTerms",
    "SessionTransport",
    "Tell",
    "Told",
    "Transport",
    "Update",
    "Window",
    "answer_windows",
    "is_remote",
    "open_transport",
    "side_by_side",
    "transport_names",
]
