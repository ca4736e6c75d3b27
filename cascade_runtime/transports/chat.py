"""OpenAI's chat completions as a cascade's server speaks them: requests out, answers and pieces in.

    chat_body(request, ...) -> bytes     the recording travels as an Arrow IPC stream in a data URL
    read_completion(json) -> Answer      a whole answer
    ChunkReader().read(json)             one chunk of a stream after the other: a `Piece`, or in the end the `Answer`

What comes in is not trusted: everything is checked for its kind and size, and that the lists of tokens belong together;
`InputError` names what is missing or impossible. What is not known to this version is left alone.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from cascade_runtime.api import Answer, GenerateRequest, Piece, Rejection, Timings
from cascade_runtime.config import MAX_LEVELS, MAX_TOKENS
from cascade_runtime.errors import InputError
from cascade_runtime.metrics import EdgeCounters
from cascade_runtime.transports.fields import Fields

MAX_TEXT = 2**20  # characters of an answer
_MAX_ID = 2**31 - 1  # of a token
_MAX_SPANS = 65_536
_MAX_MS = 1e9
_NAME = 64  # characters of a stage's name or of what it did


@runtime_checkable
class _Sendable(Protocol):
    def to_ipc_bytes(self, compression: str | None = None) -> bytes: ...


def chat_body(request: GenerateRequest, *, stream: bool, deadline_s: float) -> bytes:
    """The request as JSON, to whatever model there is. Raises `InputError` for a recording that cannot be sent."""
    if not isinstance(request.events, _Sendable):
        raise InputError("events", type(request.events).__name__, "an Events recording")
    recording = base64.b64encode(request.events.to_ipc_bytes("zstd")).decode("ascii")
    sampling = request.sampling
    body: dict[str, object] = {
        "stream": stream,
        "messages": [
            {
                "role": "user",
                "content": [
                    {
                        "type": "events_url",
                        "events_url": {"url": f"data:application/vnd.apache.arrow.stream;base64,{recording}"},
                    },
                    {"type": "text", "text": request.question},
                ],
            }
        ],
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
        "max_tokens": sampling.max_tokens,
        "cascade": {"speculate": request.speculate, "deadline_ms": max(1, round(1000 * deadline_s))},
    }
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.ignore_eos:
        body["ignore_eos"] = True
    return json.dumps(body).encode()


def read_completion(data: object) -> Answer:
    """The answer in a chat completion."""
    fields = Fields(data, "completion")
    choice = fields.only("choices")
    return read_answer(fields, choice.inner("message").text("content", MAX_TEXT), choice.text("finish_reason", _NAME))


@dataclass(eq=False)
class ChunkReader:
    """A stream of chunks, put together again."""

    _texts: list[str] = field(default_factory=list)
    _length: int = 0
    _finish_reason: str | None = None
    _levels: tuple[str, ...] = ()  # the first chunk tells
    _tokens: int = 0

    def read(self, data: object) -> Piece | Answer | None:
        """What a chunk brings: a piece of text, the answer with the last one, or nothing."""
        fields = Fields(data, "chunk")
        if fields.count("choices", 1):
            choice = fields.only("choices")
            if choice.has("finish_reason"):
                self._finish_reason = choice.text("finish_reason", _NAME)
            delta = choice.inner("delta")
            text = delta.text("content", MAX_TEXT) if delta.has("content") else ""
            self._keep(text)
            if self._finish_reason is None:
                return self._piece(fields, text)
        if self._finish_reason is None or not fields.has("metrics"):
            return None  # the answer's figures come with a later chunk
        return read_answer(fields, "".join(self._texts), self._finish_reason)

    def _keep(self, text: str) -> None:
        self._length += len(text)
        if self._length > MAX_TEXT:
            raise InputError("chunk.choices", f"{self._length} characters", f"at most {MAX_TEXT}")
        self._texts.append(text)

    def _piece(self, fields: Fields, text: str) -> Piece | None:
        cascade = fields.inner("cascade") if fields.has("cascade") else None
        if cascade is not None and cascade.has("levels"):
            self._levels = cascade.texts("levels", MAX_LEVELS, _NAME)
        if cascade is None or not cascade.has("token_ids"):
            return Piece(text) if text else None
        piece = read_piece(cascade, text, self._levels, self._tokens)
        self._tokens += len(piece.tokens)
        return piece


def read_piece(cascade: Fields, text: str, levels: tuple[str, ...], first: int) -> Piece:
    """A round's text with the tokens, words and spans in a `cascade` object. first: the number of its first token."""
    tokens = cascade.integers("token_ids", MAX_TOKENS, 0, _MAX_ID)
    masks, words = _masks(cascade, levels, first), cascade.texts("pieces", MAX_TOKENS)
    if not len(tokens) == len(masks) == len(words):
        raise InputError("chunk.cascade", (len(tokens), len(masks), len(words)), "spans and pieces for every token")
    return Piece(text, tokens, masks, words)


def read_answer(fields: Fields, text: str, finish_reason: str) -> Answer:
    """An answer of this text with the facts in its `cascade` and `metrics` objects."""
    cascade, metrics = fields.inner("cascade"), fields.inner("metrics")
    levels = cascade.each("stages", MAX_LEVELS, lambda stage, where: Fields(stage, where).text("name", _NAME))
    tokens = cascade.integers("token_ids", MAX_TOKENS, 0, _MAX_ID)
    pieces = cascade.texts("pieces", MAX_TOKENS)
    masks = _masks(cascade, levels, 0)
    if not levels or not len(tokens) == len(masks) == len(pieces):
        found = f"{len(levels)} stages, {len(tokens)} token ids, {len(pieces)} pieces, spans of {len(masks)} tokens"
        raise InputError("cascade", found, "a stage and more, and as many pieces and spanned tokens as token ids")
    return Answer(
        request_id=cascade.text("request_id", 256),
        text=text,
        token_ids=tokens,
        pieces=pieces,
        finish_reason=finish_reason,
        levels=levels,
        masks=masks,
        timings=_timings(cascade, metrics),
        edges=cascade.each("edges", MAX_LEVELS, lambda edge, _: EdgeCounters.from_dict(edge)),
        gate=cascade.mapping("gate", 64),
        mode=cascade.text("mode", _NAME),
        target_passes=cascade.integer("target_passes", 0, 2**53),
        notes=cascade.texts("notes", 256),
        rejections=cascade.each("rejections", MAX_TOKENS, lambda each, where: _rejection(each, where, len(levels))),
    )


def _masks(cascade: Fields, levels: tuple[str, ...], first: int) -> tuple[int, ...]:
    """Per token from number `first` on, the stages that stand by it, from runs that the same stages stand by."""
    masks: list[int] = []
    for run in cascade.each("spans", MAX_TOKENS, Fields):
        start, end = run.integer("start", 0, MAX_TOKENS), run.integer("end", 1, MAX_TOKENS)
        names = (run.text("by", _NAME), *run.texts("accepted_by", MAX_LEVELS, _NAME))
        unknown = [name for name in names if name not in levels]
        if unknown or start != first + len(masks) or end <= start:
            raise InputError("cascade.spans", unknown or (start, end), f"runs that follow one another, of {levels}")
        masks += [sum({1 << levels.index(name) for name in names})] * (end - start)
    return tuple(masks)


def _timings(cascade: Fields, metrics: Fields) -> Timings:
    first_ms = metrics.number("time_to_first_token_ms", -_MAX_MS, _MAX_MS)
    return Timings(
        first_ms,
        first_ms + metrics.number("generation_time_ms", 0, _MAX_MS),
        cascade.each("timeline", _MAX_SPANS, _span),
    )


def _span(value: object, where: str) -> tuple[str, str, float, float]:
    span = Fields(value, where)
    start, end = (span.number(name, -_MAX_MS, _MAX_MS) for name in ("start_ms", "end_ms"))
    return span.text("stage", _NAME), span.text("what", _NAME), start, end


def _rejection(value: object, where: str, levels: int) -> Rejection:
    fields = Fields(value, where)
    return Rejection(
        position=fields.integer("position", 0, MAX_TOKENS),
        by=fields.integer("by", 0, levels - 1),
        token_ids=fields.integers("token_ids", MAX_TOKENS, 0, _MAX_ID),
        masks=fields.integers("masks", MAX_TOKENS, 1, (1 << levels) - 1),
        text=fields.text("text"),
    )
