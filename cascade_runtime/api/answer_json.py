"""`answer_from_dict`: the inverse of `Answer.to_dict`, for an answer that came over a network.

Nothing in it is trusted: every field is checked for its kind, its size and that the per-token lists belong together.
"""

from __future__ import annotations

from cascade_runtime.api.answer import Answer, Rejection, Timings
from cascade_runtime.api.fields import Fields
from cascade_runtime.config import MAX_LEVELS, MAX_TOKENS
from cascade_runtime.errors import InputError
from cascade_runtime.metrics import EdgeCounters

_MAX_ID = 2**31 - 1  # of a token
_MAX_SPANS = 65_536
_MAX_MS = 1e9
_NAME = 64  # characters of a stage's name or of what it did


def answer_from_dict(data: object) -> Answer:
    """An answer from the JSON of `Answer.to_dict`. Raises `InputError` naming what is missing or impossible."""
    fields = Fields(data, "answer")
    levels = fields.texts("levels", MAX_LEVELS, _NAME)
    if not levels:
        raise InputError("answer.levels", [], "at least one stage")
    everybody = (1 << len(levels)) - 1
    tokens = fields.integers("token_ids", MAX_TOKENS, 0, _MAX_ID)
    masks = fields.integers("masks", MAX_TOKENS, 1, everybody)
    pieces = fields.texts("pieces", MAX_TOKENS)
    if not len(tokens) == len(masks) == len(pieces):
        raise InputError("answer", (len(tokens), len(masks), len(pieces)), "as many masks and pieces as token ids")
    return Answer(
        request_id=fields.text("request_id", 256),
        text=fields.text("text", 2**20),
        token_ids=tokens,
        pieces=pieces,
        finish_reason=fields.text("finish_reason", _NAME),
        levels=levels,
        masks=masks,
        timings=Timings(
            fields.number("ttft_ms", -_MAX_MS, _MAX_MS),
            fields.number("total_ms", -_MAX_MS, _MAX_MS),
            fields.each("spans", _MAX_SPANS, _span),
        ),
        edges=fields.each("edges", MAX_LEVELS, lambda edge, _: EdgeCounters.from_dict(edge)),
        gate=fields.mapping("gate", 64),
        mode=fields.text("mode", _NAME),
        target_passes=fields.integer("target_passes", 0, 2**53),
        notes=fields.texts("notes", 256),
        rejections=fields.each("rejections", MAX_TOKENS, lambda value, where: _rejection(value, where, len(levels))),
    )


def _span(value: object, where: str) -> tuple[str, str, float, float]:
    if not isinstance(value, list) or len(value) != 4:
        raise InputError(where, type(value).__name__, "[stage, what, start_ms, end_ms]")
    span = Fields(dict(zip(("stage", "what", "start_ms", "end_ms"), value, strict=True)), where)
    times = [span.number(name, -_MAX_MS, _MAX_MS) for name in ("start_ms", "end_ms")]
    return span.text("stage", _NAME), span.text("what", _NAME), times[0], times[1]


def _rejection(value: object, where: str, levels: int) -> Rejection:
    fields = Fields(value, where)
    return Rejection(
        position=fields.integer("position", 0, MAX_TOKENS),
        by=fields.integer("by", 0, levels - 1),
        token_ids=fields.integers("token_ids", MAX_TOKENS, 0, _MAX_ID),
        masks=fields.integers("masks", MAX_TOKENS, 1, (1 << levels) - 1),
        text=fields.text("text"),
    )
