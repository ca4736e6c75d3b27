"""`Outcome`: one row of the output, an answer or an error, and how it is kept.

As JSON it is `to_dict`, as Parquet a row of `SCHEMA`; both have every column in every row, so that an output without
errors, options or scores has the same columns as one with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from cascade_runtime.api import Answer
from cascade_runtime.batch.question import BadRow, Question, Row
from cascade_runtime.batch.scoring import chosen, contained, same
from cascade_runtime.errors import CascadeError, InputError

_EDGE = pa.struct([("edge", pa.string()), ("drafted", pa.int64()), ("accepted", pa.int64())])
SCHEMA = pa.schema(
    [
        ("index", pa.int64()),
        ("id", pa.string()),
        ("recording", pa.string()),
        ("question", pa.string()),
        ("options", pa.list_(pa.string())),
        ("answer", pa.string()),
        ("text", pa.string()),
        ("choice", pa.string()),
        ("correct", pa.bool_()),
        ("contained", pa.bool_()),
        ("error", pa.string()),
        ("error_kind", pa.string()),
        ("finish_reason", pa.string()),
        ("token_ids", pa.list_(pa.int64())),
        ("ttft_ms", pa.float64()),
        ("total_ms", pa.float64()),
        ("target_passes", pa.int64()),
        ("edges", pa.list_(_EDGE)),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one row. `answer` is the right one, where it is known; `text` is what was said.

    choice: the letter of the option that `text` names. correct: that is the right one; of an open question, `text` is
    the right answer to the word. contained, of an open question: it occurs in `text`. None: there is nothing to score.
    failed: the cascade failed, not the row; it is asked again when the run goes on.
    """

    index: int
    id: str
    recording: str | None = None
    question: str | None = None
    options: tuple[str, ...] = ()
    answer: str | None = None
    text: str | None = None
    choice: str | None = None
    correct: bool | None = None
    contained: bool | None = None
    error: str | None = None
    error_kind: str | None = None
    finish_reason: str | None = None
    token_ids: tuple[int, ...] = ()
    ttft_ms: float | None = None
    total_ms: float | None = None
    target_passes: int | None = None
    edges: tuple[Mapping[str, Any], ...] = ()
    failed: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain data, in the order of `SCHEMA`."""
        told = asdict(self)
        del told["failed"]
        return {name: list(value) if isinstance(value, tuple) else value for name, value in told.items()}


def answered(question: Question, answer: Answer) -> Outcome:
    """The row of an answer, scored where the right one is known."""
    choice = correct = inside = None
    if question.options:
        choice = chosen(answer.text, question.options)
        correct = None if question.answer is None else choice == question.answer
    elif question.answer is not None:
        correct, inside = same(answer.text, question.answer), contained(answer.text, question.answer)
    edges = [
        {"edge": edge.edge, "drafted": edge.num_draft_tokens, "accepted": edge.num_accepted_tokens}
        for edge in answer.edges
    ]
    return Outcome(
        **_asked(question),
        text=answer.text,
        choice=choice,
        correct=correct,
        contained=inside,
        finish_reason=answer.finish_reason,
        token_ids=answer.token_ids,
        ttft_ms=round(answer.timings.ttft_ms, 3),
        total_ms=round(answer.timings.total_ms, 3),
        target_passes=answer.target_passes,
        edges=tuple(edges),
    )


def refused(row: Row, error: CascadeError) -> Outcome:
    """The row of an error. An `InputError` is the row's own fault and final; any other is the cascade's."""
    asked: dict[str, Any] = {"index": row.index, "id": row.id} if isinstance(row, BadRow) else _asked(row)
    failed = not isinstance(error, InputError)
    return Outcome(**asked, error=str(error), error_kind=type(error).__name__, failed=failed)


def _asked(question: Question) -> dict[str, Any]:
    return {name: getattr(question, name) for name in ("index", "id", "recording", "question", "options", "answer")}
