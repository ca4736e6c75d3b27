"""Schemathesis' hooks: every other body whose recording is only well spelled gets one that can be read.

Otherwise hardly a case would get past the reader of recordings, and the pipeline behind it would never be reached.
"""

from __future__ import annotations

import itertools
import re
from typing import Any

import schemathesis

RECORDING = re.compile(r"data:[^,]*;[^,]*base64[^,]*,")
BARS = "data:text/csv;base64," + "dCx4LHkscAowLDEsMSwxCjUwMCwyLDIsMAoxMDAwLDMsMywxCjE1MDAsNCw0LDAKMjAwMCw1LDUsMQo="
_turn = itertools.count()


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Repairs what a schema cannot say: one part of a question is a recording, and its bytes are one."""
    if next(_turn) % 2 or not isinstance(body, dict):
        return body
    if isinstance(body.get("recording"), dict):
        _repair(body["recording"])
    for message in _list(body.get("messages")):
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list):
            good = [part for part in content if _spelled(part)]
            for part in good:
                _repair(part[part["type"]])
            message["content"] = [part for part in content if part not in good[1:]]
            message["content"].append({"type": "text", "text": "What is moving?"})
    return body


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _spelled(part: Any) -> bool:
    kind = part.get("type") if isinstance(part, dict) else None
    source = part.get(kind) if isinstance(kind, str) else None
    return isinstance(source, dict) and isinstance(source.get("url"), str) and bool(RECORDING.match(source["url"]))


def _repair(source: dict[str, Any]) -> None:
    if isinstance(source.get("url"), str) and RECORDING.match(source["url"]):
        source["url"] = BARS
        if source.get("format") not in (None, "text") and isinstance(source.get("format"), str):
            source["format"] = "text"
