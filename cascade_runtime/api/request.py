"""`GenerateRequest`: one question about one recording, validated where it enters."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from cascade_runtime.config import SamplingParams
from cascade_runtime.errors import InputError

MAX_QUESTION_CHARACTERS = 8192
_REQUEST_ID = re.compile(r"[\w.:-]{1,64}")


@runtime_checkable
class Recording(Protocol):
    """What is asked of a recording here; `cascade_runtime.events.Events` is one."""

    @property
    def duration_us(self) -> int: ...

    def __len__(self) -> int: ...

    def densest_window(self, window_us: int) -> Recording: ...


def _new_id() -> str:
    return uuid.uuid4().hex


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """One question about one recording. Raises `InputError` naming the field that is unusable.

    request_id identifies the request in logs and traces. With `speculate` off the target decodes alone: the same
    answer, no drafters involved.
    """

    events: Recording
    question: str
    sampling: SamplingParams = field(default_factory=SamplingParams)
    request_id: str = field(default_factory=_new_id)
    speculate: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.events, Recording):
            raise InputError("events", type(self.events).__name__, "an Events recording (see read_events)")
        if len(self.events) == 0:
            raise InputError("events", "0 events", "a recording with at least one event")
        if not isinstance(self.question, str) or not self.question.strip():
            raise InputError("question", self.question, "a non-empty text")
        if len(self.question) > MAX_QUESTION_CHARACTERS:
            raise InputError("question", f"{len(self.question)} characters", f"at most {MAX_QUESTION_CHARACTERS}")
        if not isinstance(self.sampling, SamplingParams):
            raise InputError("sampling", type(self.sampling).__name__, "SamplingParams")
        if not isinstance(self.speculate, bool):
            raise InputError("speculate", self.speculate, "true or false")
        if not isinstance(self.request_id, str) or not _REQUEST_ID.fullmatch(self.request_id):
            raise InputError("request_id", self.request_id, "1 to 64 letters, digits, '_', '.', ':', '-'")
