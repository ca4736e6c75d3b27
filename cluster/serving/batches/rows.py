"""A batch's input: JSON Lines, each {"custom_id", "method": "POST", "url": "/v1/chat/completions", "body": {...}}.

`check` reads all of it before anything is asked; a body is only looked into when it is asked, by the one validator.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from cluster.serving.batches.batch import ENDPOINT

MAX_ROWS = 50_000
_MAX_ID = 256
_SHOWN = 20
_KEYS = ("custom_id", "method", "url", "body")


@dataclass(frozen=True, kw_only=True)
class BatchRow:
    """One line. number: from 1."""

    number: int
    custom_id: str
    body: dict[str, Any]


@dataclass(eq=False)
class BadLine(Exception):
    """A line that is no row; number: from 1, 0 for the whole file."""

    number: int
    code: str
    message: str
    param: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As OpenAI tells it among a batch's errors."""
        return {"code": self.code, "line": self.number or None, "message": self.message, "param": self.param}


def read_rows(file: BinaryIO, max_line_bytes: int) -> Iterator[BatchRow | BadLine]:
    """Every line that is not blank."""
    number = 0
    while line := file.readline(max_line_bytes + 1):
        number += 1
        if len(line) > max_line_bytes:
            while line and not line.endswith(b"\n"):
                line = file.readline(max_line_bytes)
            yield BadLine(number, "line_too_long", f"a line may have {max_line_bytes} bytes at most")
        elif line.strip():
            try:
                yield _row(line, number)
            except BadLine as bad:
                yield bad


def check(file: BinaryIO, max_line_bytes: int) -> tuple[int, list[BadLine]]:
    """How many rows there are, and the first of what is wrong with them."""
    seen: set[str] = set()
    wrong: list[BadLine] = []
    rows = 0
    for row in read_rows(file, max_line_bytes):
        rows += 1
        if isinstance(row, BatchRow) and row.custom_id in seen:
            row = BadLine(
                row.number, "duplicate_custom_id", f"custom_id {row.custom_id!r} was there before", "custom_id"
            )
        if isinstance(row, BadLine):
            wrong.append(row)
        else:
            seen.add(row.custom_id)
        if rows > MAX_ROWS:
            wrong.insert(0, BadLine(0, "too_many_rows", f"a batch may have {MAX_ROWS} rows at most"))
        if len(wrong) >= _SHOWN or rows > MAX_ROWS:
            break
    if not rows:
        wrong.append(BadLine(0, "empty_file", "the input has no row"))
    return rows, wrong


def _row(line: bytes, number: int) -> BatchRow:
    try:
        told = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadLine(number, "invalid_json_line", f"the line is not JSON: {str(error)[:80]}") from error
    if not isinstance(told, dict) or not told.keys() <= set(_KEYS):
        raise BadLine(number, "invalid_line", f"a line is an object with the keys {', '.join(_KEYS)}")
    name, body = told.get("custom_id"), told.get("body")
    if not isinstance(name, str) or not 1 <= len(name) <= _MAX_ID or not name.isprintable():
        raise BadLine(number, "invalid_value", f"custom_id is a text of 1 to {_MAX_ID} characters", "custom_id")
    if told.get("method", "POST") != "POST":
        raise BadLine(number, "invalid_method", "method is POST", "method")
    if told.get("url") != ENDPOINT:
        raise BadLine(number, "invalid_url", f"url is {ENDPOINT}", "url")
    if not isinstance(body, dict):
        raise BadLine(number, "invalid_value", "body is an object", "body")
    if body.get("stream"):
        raise BadLine(number, "invalid_value", "a batch does not stream: stream is false", "body.stream")
    return BatchRow(number=number, custom_id=name, body=body)
