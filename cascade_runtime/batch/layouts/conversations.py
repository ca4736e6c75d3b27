"""Conversations about recordings, the form in which EventGPT's data (DSEC, N-ImageNet) and LLaVA's are kept:

    {"id": "interlaken_00_d_69", "event": "interlaken_00_d/000069.npy",
     "conversations": [{"from": "human", "value": "<event>\\nWhat is on the road?"},
                       {"from": "gpt", "value": "Two cars."},
                       {"from": "human", "value": "How fast are they?"}, ...]}

Every question becomes a row of its own, asked without what was said before it. EventBench's questions are handed out on
request and have no published form; flat records are read too: {id?, event, question, options | candidates?, answer?}.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cascade_runtime.batch.question import Record
from cascade_runtime.batch.records import read_records
from cascade_runtime.errors import InputError

_PLACEHOLDER = re.compile(r"\s*<(?:ev_start|event|ev_end|video|image)>\s*")
_RECORDING = ("event", "events", "event_data", "event_path", "video", "recording")


def conversation_records(record: Record) -> list[Record | InputError]:
    """The questions of one record, in order."""
    recording = next((record[key] for key in _RECORDING if record.get(key) is not None), None)
    name = record.get("id", record.get("question_id"))
    turns = record.get("conversations")
    if turns is None:
        options = record.get("options", record.get("candidates"))
        asked = _without_placeholder(record.get("question", record.get("query")))
        flat = {"id": name, "recording": recording, "question": asked, "options": options}
        return [{**flat, "answer": record.get("answer")}]
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        return [InputError("conversations", turns, "a list of {from, value}")]
    found: list[dict[str, Any]] = []
    for turn in turns:
        if turn.get("from") in ("human", "user"):
            asked = _without_placeholder(turn.get("value"))
            found.append({"id": name, "recording": recording, "question": asked, "answer": None})
        elif found and found[-1]["answer"] is None:
            found[-1]["answer"] = turn.get("value")
    if not found:
        return [InputError("conversations", turns, "at least one question of a human")]
    if len(found) > 1 and name is not None:
        for number, one in enumerate(found):
            one["id"] = f"{name}#{number}"
    return list(found)


def _without_placeholder(value: object) -> object:
    return _PLACEHOLDER.sub(" ", value).strip() if isinstance(value, str) else value


def read_conversations(path: Path) -> Iterator[Record | InputError]:
    """The questions of a file of such records (.json, .jsonl, .parquet)."""
    for record in read_records(path):
        if isinstance(record, InputError):
            yield record
        else:
            yield from conversation_records(record)
