"""The one validator of what comes from outside: a chat completion's body as a dict -> `ChatRequest`.

HTTP, gRPC, a Serve handle and batch files go through `parse_chat`, so that no door has limits of its own. It is
pure: no clock, no network, and no file but those of `MediaLimits.directory`. Whatever is wrong raises `InputError`,
which names the field, the value and what is allowed.

Fields fall into four kinds: used; ignored since they cannot change an answer (_IGNORED); accepted where they ask for
nothing (_NEUTRAL); and refused, all others. What the API means is written in `cluster/serving/__init__.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cascade_runtime.api import GenerateRequest
from cascade_runtime.api.request import MAX_QUESTION_CHARACTERS
from cascade_runtime.config import SamplingParams
from cascade_runtime.config.checks import integer, printable
from cascade_runtime.errors import InputError
from cascade_runtime.events import Events
from cascade_runtime.events.array import MAX_TIME_US
from cluster.serving.media import Media, MediaLimits, read_media

_USED = (
    *("model", "messages", "stream", "stream_options", "temperature", "top_p", "top_k", "seed", "max_tokens"),
    *("max_completion_tokens", "stop", "ignore_eos", "cascade"),
)
_IGNORED = (
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    "parallel_tool_calls",
)
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "min_p": (0,),
    "min_tokens": (0,),
    "top_logprobs": (0,),
    "logprobs": (False,),
    "echo": (False,),
    "use_beam_search": (False,),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "logit_bias": ({},),
    "stop_token_ids": ([],),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "audio": (),
    "prediction": (),
    "verbosity": (),
    "web_search_options": (),
}
_SAMPLING = ("temperature", "top_p", "top_k", "seed", "ignore_eos")
_MEDIA = ("events_url", "video_url", "file")
_CASCADE = ("deadline_ms", "speculate", "clip")
MAX_DEADLINE_MS = 86_400_000  # a day; what is later than the server's own deadline is that one
_MAX_PARTS = 16
_MAX_MESSAGES = 64
_MAX_STOPS = 8
_MAX_STOP_CHARACTERS = 64


@dataclass(frozen=True, kw_only=True)
class ChatLimits:
    """What one request may ask. models: the names this server answers to; deadline_s: of one answer, at most."""

    models: tuple[str, ...]
    max_tokens: int = 1024
    deadline_s: float = 120.0
    media: MediaLimits = field(default_factory=MediaLimits)


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """A valid request: what the cascade is asked, and how the answer is wanted.

    simulated: the events were made from a video. include_usage: a stream ends in a chunk with counts.
    """

    request: GenerateRequest
    model: str
    stream: bool
    include_usage: bool
    deadline_s: float
    simulated: bool


def parse_chat(body: object, limits: ChatLimits, *, seed: int = 0) -> ChatRequest:
    """The request in a chat completion's body. seed: for a sampled answer whose body names none.

    Raises `InputError`: field "model" for a name this server does not know, `EventFormatError` for a recording that
    cannot be read, and otherwise with the path of the field ("messages[0].content[1].video_url.url").
    """
    if not isinstance(body, Mapping):
        raise InputError("body", type(body).__name__, "a JSON object")
    fields = {key: value for key, value in body.items() if value is not None}
    for key, value in fields.items():
        _check_known(key, value)
    model = fields.get("model", limits.models[0])
    if not isinstance(model, str) or model not in limits.models:
        raise InputError("model", _short(model), ", ".join(limits.models))
    stream = _boolean("stream", fields.get("stream", False))
    include_usage = _include_usage(fields, stream)
    sampling = _sampling(fields, limits, seed)
    extra = _object("cascade", fields.get("cascade", {}), _CASCADE)
    speculate = _boolean("cascade.speculate", extra.get("speculate", True))
    deadline_s = limits.deadline_s
    if extra.get("deadline_ms") is not None:
        integer(InputError, "cascade.deadline_ms", extra["deadline_ms"], 1, MAX_DEADLINE_MS)
        deadline_s = min(deadline_s, extra["deadline_ms"] / 1000)
    clip = _clip(extra.get("clip"))
    question, media = _asked(fields.get("messages"), limits)
    events = media.events if clip is None else _clipped(media.events, *clip)
    request = GenerateRequest(events=events, question=question, sampling=sampling, speculate=speculate)
    return ChatRequest(
        request=request,
        model=model,
        stream=stream,
        include_usage=include_usage,
        deadline_s=deadline_s,
        simulated=media.simulated,
    )


def _check_known(key: object, value: object) -> None:
    if key in _USED or key in _IGNORED:
        return
    if not isinstance(key, str) or key not in _NEUTRAL:
        raise InputError(str(_short(key)), _short(value), "nothing: this server has no such field")
    allowed = _NEUTRAL[key]
    if not any(value == ok and isinstance(value, bool) == isinstance(ok, bool) for ok in allowed):
        raise InputError(key, _short(value), " or ".join(repr(ok) for ok in allowed) or "null: it is not supported")


def _sampling(fields: Mapping[str, Any], limits: ChatLimits, seed: int) -> SamplingParams:
    given = {key: fields[key] for key in _SAMPLING if key in fields}
    for key, value in given.items():
        if isinstance(value, str | list | Mapping):
            raise InputError(key, _short(value), "true or false" if key == "ignore_eos" else "a number")
    if given.get("top_k") == -1:  # vLLM's way to switch it off
        given["top_k"] = 0
    counts = {key: fields[key] for key in ("max_tokens", "max_completion_tokens") if key in fields}
    for key, count in counts.items():
        integer(InputError, key, count, 1, limits.max_tokens)
    if len(set(counts.values())) > 1:
        raise InputError("max_completion_tokens", counts["max_completion_tokens"], "the same as max_tokens, or alone")
    if counts:
        given["max_tokens"] = next(iter(counts.values()))
    else:
        given["max_tokens"] = min(SamplingParams().max_tokens, limits.max_tokens)
    sampling = SamplingParams(**given, stop=_stop(fields.get("stop", [])))
    if sampling.temperature and "seed" not in fields:
        return replace(sampling, seed=seed)
    return sampling


def _stop(value: object) -> tuple[str, ...]:
    several = [value] if isinstance(value, str) else value
    if not isinstance(several, list) or len(several) > _MAX_STOPS:
        raise InputError("stop", _short(value), f"a text, or a list of at most {_MAX_STOPS}")
    for text in several:
        if not 1 <= len(_text("stop", text)) <= _MAX_STOP_CHARACTERS:
            raise InputError("stop", _short(text), f"texts of 1 to {_MAX_STOP_CHARACTERS} characters")
    return tuple(several)


def _asked(messages: object, limits: ChatLimits) -> tuple[str, Media]:
    """The question and the recording of the one message."""
    if not isinstance(messages, list) or not 1 <= len(messages) <= _MAX_MESSAGES:
        raise InputError("messages", _short(messages), "a list with one message of role user")
    for index, message in enumerate(messages):
        known = _object(f"messages[{index}]", message, ("role", "content", "name"))
        if known.get("role") != "user":
            allowed = "user: these models' prompts hold one question, no system text and no earlier turns"
            raise InputError(f"messages[{index}].role", _short(known.get("role")), allowed)
    if len(messages) > 1:
        raise InputError("messages", f"{len(messages)} messages", "one: a question about one recording")
    content = messages[0].get("content")
    if not isinstance(content, list) or not 1 <= len(content) <= _MAX_PARTS:
        allowed = f"a list of 1 to {_MAX_PARTS} parts, one of them a recording (events_url, video_url or file)"
        raise InputError("messages[0].content", _short(content), allowed)
    texts: list[str] = []
    sources: list[tuple[str, object]] = []
    for number, part in enumerate(content):
        where = f"messages[0].content[{number}]"
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text":
            texts.append(_text(f"{where}.text", _object(where, part, ("type", "text")).get("text")))
        elif isinstance(kind, str) and kind in _MEDIA:
            sources.append((f"{where}.{kind}", _object(where, part, ("type", kind)).get(kind)))
        else:
            raise InputError(f"{where}.type", _short(kind), "text, events_url, video_url, file")
    if not "".join(texts).strip():
        raise InputError("messages[0].content", "no text", "a text part with the question")
    if len(sources) != 1:
        raise InputError("messages[0].content", f"{len(sources)} recordings", "one events_url, video_url or file part")
    question = "\n".join(texts)
    if len(question) > MAX_QUESTION_CHARACTERS:  # before a recording is read
        raise InputError("messages[0].content", f"{len(question)} characters", f"at most {MAX_QUESTION_CHARACTERS}")
    where, source = sources[0]
    return question, read_media(source, where, limits.media)


def _include_usage(fields: Mapping[str, Any], stream: bool) -> bool:
    if "stream_options" not in fields:
        return False
    known = ("include_usage", "include_obfuscation", "continuous_usage_stats")
    options = _object("stream_options", fields["stream_options"], known)
    if not stream:
        raise InputError("stream_options", _short(options), "null unless stream is true")
    wanted = {key: _boolean(f"stream_options.{key}", options[key]) for key in known if options.get(key) is not None}
    return wanted.get("include_usage", False)


def _clip(clip: object) -> tuple[int, int] | None:
    """(start, end) in microseconds from the recording's first event."""
    if clip is None:
        return None
    bounds = _object("cascade.clip", clip, ("t_start_us", "t_end_us"))
    start, end = bounds.get("t_start_us", 0), bounds.get("t_end_us")
    integer(InputError, "cascade.clip.t_start_us", start, 0, 2**62 - 1)
    integer(InputError, "cascade.clip.t_end_us", end, start + 1, 2**62)
    assert isinstance(end, int)  # checked just now
    return start, end


def _clipped(events: Events, start_us: int, end_us: int) -> Events:
    first = int(events.t[0]) if len(events) else 0
    part = events.window(first + start_us, min(first + end_us, MAX_TIME_US))
    if not len(part):
        raise InputError("cascade.clip", (start_us, end_us), "a time in which the recording has events")
    return part


def _object(name: str, value: object, keys: Sequence[str]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(name, _short(value), f"an object with the keys {', '.join(keys)}")
    for key in value:
        if key not in keys:
            raise InputError(f"{name}.{_short(key)}", _short(value[key]), f"only the keys {', '.join(keys)}")
    return value


def _boolean(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise InputError(name, _short(value), "true or false")
    return value


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise InputError(name, _short(value), "a text")
    return _spellable(name, value)


def _spellable(name: str, text: str) -> str:
    """JSON can hold half a character ("\\ud800"), which no tokenizer can spell."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(name, text[error.start : error.start + 1], "whole Unicode characters") from error
    return text


def _short(value: object) -> object:
    """A value as an error may show it: of a long text its beginning, of a list or object only what it is."""
    if isinstance(value, str):
        return value[:60]
    return type(value).__name__ if isinstance(value, Mapping | list) else printable(value)
