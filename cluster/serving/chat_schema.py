"""A chat completion's body as JSON Schema, from the validator's own tables and bounds (`chat_request.py`).

A schema says less than the validator: that exactly one part is a recording, that `stream_options` wants `stream`, that
a clip ends after it begins and that the bytes are a recording, only the validator knows. What the schema refuses, the
validator refuses.
"""

from __future__ import annotations

import base64
from typing import Any

from cascade_runtime.api.request import MAX_QUESTION_CHARACTERS
from cascade_runtime.events.array import MAX_SENSOR_SIDE
from cascade_runtime.events.readers import SENT_FORMATS
from cluster.serving.chat_request import (
    _IGNORED,
    _MAX_PARTS,
    _MAX_STOP_CHARACTERS,
    _MAX_STOPS,
    _MEDIA,
    _NEUTRAL,
    MAX_DEADLINE_MS,
    ChatLimits,
)
from cluster.serving.media import MediaLimits

Json = dict[str, Any]
_DATA_URL = "^data:[^,]*;[^,]*base64[^,]*,"
_EVENTS = "t,x,y,p\n" + "".join(f"{500 * k},{k % 32},{k % 24},{k % 2}\n" for k in range(64))
EXAMPLE_URL = f"data:text/csv;base64,{base64.b64encode(_EVENTS.encode()).decode()}"
"""A recording of 64 events."""


def chat_body(limits: ChatLimits, *, uploads: bool) -> Json:
    """The schema of what `parse_chat` takes, with these limits."""
    tokens: Json = {"type": "integer", "minimum": 1, "maximum": limits.max_tokens}
    stop: Json = {"type": "string", "minLength": 1, "maxLength": _MAX_STOP_CHARACTERS}
    used: dict[str, Json] = {
        "model": {"enum": list(limits.models)},
        "stream": {"type": "boolean"},
        "stream_options": _closed(
            {
                "include_usage": {"type": ["boolean", "null"]},
                "include_obfuscation": {"type": ["boolean", "null"]},
                "continuous_usage_stats": {"type": ["boolean", "null"]},
            }
        ),
        "temperature": {"type": "number", "minimum": 0, "maximum": 10},
        "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        "top_k": {"type": "integer", "minimum": -1, "maximum": 1_000_000},
        "seed": {"type": "integer", "minimum": 0, "maximum": 2**64 - 1},
        "max_tokens": tokens,
        "max_completion_tokens": tokens,
        "stop": {"anyOf": [stop, {"type": "array", "items": stop, "maxItems": _MAX_STOPS}]},
        "ignore_eos": {"type": "boolean"},
        "cascade": _cascade(limits),
    }
    neutral: dict[str, Json] = {name: {"enum": list(allowed)} for name, allowed in _NEUTRAL.items() if allowed}
    refused: dict[str, Json] = {name: {"type": "null"} for name, allowed in _NEUTRAL.items() if not allowed}
    properties = {name: _or_null(schema) for name, schema in (used | neutral).items()}
    ignored: dict[str, Json] = {name: {"description": "ignored"} for name in _IGNORED}
    return _closed(
        {"messages": _messages(limits, uploads=uploads), **properties, **refused, **ignored}, required=["messages"]
    )


def media_source(limits: MediaLimits, *, uploads: bool) -> Json:
    """The schema of what `read_media` takes, with these limits. uploads: files may be named by their ids."""
    url = _DATA_URL if limits.directory is None else f"{_DATA_URL}|^file://"
    side: Json = {"type": ["integer", "null"], "minimum": 1, "maximum": MAX_SENSOR_SIDE}
    properties: dict[str, Json] = {
        "url": {"type": ["string", "null"], "pattern": url},
        "file_id": {"type": ["string", "null"]} if uploads else {"type": "null"},
        "format": {"enum": [*SENT_FORMATS, None]},
        "width": side,
        "height": side,
        "fps": {"type": ["number", "null"], "minimum": 0.1, "maximum": 10_000},
    }
    text, nothing = {"type": "string"}, {"type": "null"}
    named = [("url", "file_id"), ("file_id", "url")][: 2 if uploads else 1]
    ways = [{"required": [one], "properties": {one: text, other: nothing}} for one, other in named]
    return _closed(properties) | {"oneOf": ways}


def example_body() -> Json:
    """A question about `EXAMPLE_URL`."""
    recording = {"type": "events_url", "events_url": {"url": EXAMPLE_URL}}
    content = [recording, {"type": "text", "text": "What is moving?"}]
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 8}


def _messages(limits: ChatLimits, *, uploads: bool) -> Json:
    text = _closed(
        {"type": {"const": "text"}, "text": {"type": "string", "maxLength": MAX_QUESTION_CHARACTERS}},
        required=["type", "text"],
    )
    source = media_source(limits.media, uploads=uploads)
    media = [_closed({"type": {"const": kind}, kind: source}, required=["type", kind]) for kind in _MEDIA]
    content = {"type": "array", "minItems": 2, "maxItems": _MAX_PARTS, "items": {"oneOf": [text, *media]}}
    message = _closed({"role": {"const": "user"}, "content": content, "name": {}}, required=["role", "content"])
    return {"type": "array", "minItems": 1, "maxItems": 1, "items": message}


def _cascade(limits: ChatLimits) -> Json:
    clip = _closed(
        {
            "t_start_us": {"type": "integer", "minimum": 0, "maximum": 2**62 - 1},
            "t_end_us": {"type": "integer", "minimum": 1, "maximum": 2**62},
        },
        required=["t_end_us"],
    )
    deadline: Json = {"type": ["integer", "null"], "minimum": 1, "maximum": MAX_DEADLINE_MS}
    return _closed({"deadline_ms": deadline, "speculate": {"type": "boolean"}, "clip": _or_null(clip)})


def _closed(properties: dict[str, Json], required: list[str] | None = None) -> Json:
    """An object with these properties and no others."""
    schema: Json = {"type": "object", "properties": properties, "additionalProperties": False}
    return schema | ({"required": required} if required else {})


def _or_null(schema: Json) -> Json:
    return {"enum": [*schema["enum"], None]} if set(schema) == {"enum"} else {"anyOf": [schema, {"type": "null"}]}
