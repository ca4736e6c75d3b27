"""`Question`: one row of the input, checked; `BadRow`: a row that is none, which becomes an error row of the output.

A record, whatever file or layout it came from, has these keys; others are ignored:

    {"id": "q7", "events": "drive/0012.npy", "question": "What is moving?"}                      an open question
    {..., "options": ["a car", "a tree"], "answer": "A"}                                         multiple choice

`events`, `video` or `recording` name the recording; `answer` is optional and only scores. `start_s` and `end_s` cut
the recording. Where `id` is missing it is the row's number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cascade_runtime.api.request import MAX_QUESTION_CHARACTERS
from cascade_runtime.batch.scoring import LETTERS, normalised
from cascade_runtime.errors import InputError

Record = Mapping[str, Any]
RECORDING_KEYS = ("events", "video", "recording")
MAX_TEXT = MAX_QUESTION_CHARACTERS
_MAX_ID, _MAX_PATH, _MAX_SECONDS = 256, 4096, 1e6


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about a recording. index: its row in the input, from 0. answer: what is right, if that is known: a
    letter where there are options, else a text. cut: seconds of the recording to look at, from and to.
    """

    index: int
    id: str
    recording: str
    question: str
    options: tuple[str, ...] = ()
    answer: str | None = None
    cut: tuple[float, float] | None = None

    @property
    def about(self) -> tuple[str, tuple[float, float] | None]:
        """What it is asked about: questions that are equal in this share a recording."""
        return self.recording, self.cut

    @property
    def prompt(self) -> str:
        """What the model is asked: the question, then the options under their letters."""
        if not self.options:
            return self.question
        lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, self.options, strict=False)]
        return "\n".join([self.question, *lines, "Answer with the letter of the right option."])


@dataclass(frozen=True, kw_only=True)
class BadRow:
    """A row that cannot be asked, and why."""

    index: int
    id: str
    error: InputError


Row = Question | BadRow


def question_from(record: Record, index: int) -> Row:
    """The checked row `index`. What is wrong with it comes back as a `BadRow`, never as an exception."""
    name = str(index)
    try:
        name = _id(record, index)
        return _question(record, index, name)
    except InputError as error:
        return BadRow(index=index, id=name, error=error)


def _question(record: Record, index: int, name: str) -> Question:
    recordings = [record[key] for key in RECORDING_KEYS if record.get(key) is not None]
    if len(recordings) != 1:
        raise InputError("recording", recordings, f"exactly one of {', '.join(RECORDING_KEYS)}")
    options = _options(record.get("options"))
    asked = Question(
        index=index,
        id=name,
        recording=_text("recording", recordings[0], _MAX_PATH),
        question=_text("question", record.get("question"), MAX_TEXT),
        options=options,
        answer=_answer(record.get("answer"), options),
        cut=_cut(record.get("start_s"), record.get("end_s")),
    )
    if len(asked.prompt) > MAX_QUESTION_CHARACTERS:
        allowed = f"at most {MAX_QUESTION_CHARACTERS}, options included"
        raise InputError("question", f"{len(asked.prompt)} characters", allowed)
    return asked


def _id(record: Record, index: int) -> str:
    value = record.get("id")
    if value is None:
        return str(index)
    if isinstance(value, bool) or not isinstance(value, str | int) or not 1 <= len(str(value)) <= _MAX_ID:
        raise InputError("id", value, f"a text or an integer of at most {_MAX_ID} characters")
    return str(value)


def _text(field: str, value: object, most: int) -> str:
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise InputError(field, value, "a non-empty text")
    if len(value) > most:
        raise InputError(field, f"{len(value)} characters", f"at most {most}")
    return value


def _options(value: object) -> tuple[str, ...]:
    if value is None or (isinstance(value, Sequence) and not isinstance(value, str) and not len(value)):
        return ()
    if isinstance(value, str) or not isinstance(value, Sequence) or not 2 <= len(value) <= len(LETTERS):
        raise InputError("options", value, f"a list of 2 to {len(LETTERS)} texts")
    return tuple(_text("options", option, MAX_TEXT) for option in value)


def _answer(value: object, options: Sequence[str]) -> str | None:
    """The right option's letter, or the right text. An option's own text counts before its letter."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InputError("answer", value, "a text or a number")
    text = _text("answer", str(value), MAX_TEXT)
    if not options:
        return text
    said = [letter for letter, option in zip(LETTERS, options, strict=False) if normalised(option) == normalised(text)]
    if len(said) == 1:
        return said[0]
    letter = text.strip(" ().:").upper()
    if len(letter) == 1 and letter in LETTERS[: len(options)]:
        return letter
    raise InputError("answer", text, f"an option's text or its letter, {LETTERS[0]} to {LETTERS[len(options) - 1]}")


def _cut(start: object, end: object) -> tuple[float, float] | None:
    if start is None and end is None:
        return None
    begin, until = (0.0 if start is None else start), (_MAX_SECONDS if end is None else end)
    for field, value in (("start_s", begin), ("end_s", until)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MAX_SECONDS:
            raise InputError(field, value, f"seconds from 0 to {_MAX_SECONDS:g}")
    assert isinstance(begin, int | float) and isinstance(until, int | float)
    if not begin < until:
        raise InputError("end_s", end, f"more than start_s ({begin:g})")
    return float(begin), float(until)
