"""What the HTTP API answers, as JSON Schema: the required fields of each object, and their kinds.

More fields may come with a later version; those that are named here stay. What they mean is written in
`cluster/serving/__init__.py`.
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

TEXT: Json = {"type": "string"}
COUNT: Json = {"type": "integer", "minimum": 0}
MS: Json = {"type": "number", "minimum": 0}


def several(items: Json) -> Json:
    """An array of these."""
    return {"type": "array", "items": items}


def record(**properties: Json) -> Json:
    """An object that has all of these."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def optional(schema: Json) -> Json:
    """This, or null."""
    return {"anyOf": [schema, {"type": "null"}]}


_TOKENS = several(COUNT)
_ERROR = record(
    message=TEXT,
    type=TEXT,
    param=optional(TEXT),
    code=TEXT,
    retryable={"type": "boolean"},
    request_id=optional(TEXT),
)
_USAGE = record(
    prompt_tokens=COUNT,
    completion_tokens=COUNT,
    total_tokens=COUNT,
    completion_tokens_details=record(accepted_prediction_tokens=COUNT, rejected_prediction_tokens=COUNT),
)
_SPECULATION = record(
    mean_acceptance_length=MS,
    draft_acceptance_rate=MS,
    acceptance_histogram=_TOKENS,
    num_spec_steps=COUNT,
    num_accepted_draft_tokens=COUNT,
    num_draft_tokens=COUNT,
    num_spec_tokens=COUNT,
)
_METRICS = record(
    time_to_first_token_ms=MS,
    generation_time_ms=MS,
    queue_time_ms=optional(MS),
    mean_itl_ms=optional(MS),
    tokens_per_second=MS,
    speculative_decoding=optional(_SPECULATION),
)
_CASCADE = record(
    request_id=TEXT,
    recipe=TEXT,
    mode={"enum": ["strict", "aligned"]},
    seed=COUNT,
    target_passes=COUNT,
    input=record(events=COUNT, width=COUNT, height=COUNT, duration_us=COUNT, simulated={"type": "boolean"}),
    gate=optional(record(decision=TEXT, cosine=optional({"type": "number"}))),
    stages=several(record(name=TEXT, produced=COUNT, drafted=COUNT, accepted_by_next=COUNT)),
    token_ids=_TOKENS,
    pieces=several(TEXT),
    spans=several(record(start=COUNT, end=COUNT, by=TEXT, accepted_by=several(TEXT))),
    edges=several(record(edge=TEXT)),
    rejections=several(record(position=COUNT, by=COUNT, token_ids=_TOKENS, masks=_TOKENS, text=TEXT)),
    timeline=several(record(stage=TEXT, what=TEXT, start_ms={"type": "number"}, end_ms={"type": "number"})),
    notes=several(TEXT),
)
_FINISH: Json = {"enum": ["stop", "length"]}
_MESSAGE = record(role={"const": "assistant"}, content=TEXT, refusal={"type": "null"})
_CHOICE = record(index={"const": 0}, message=_MESSAGE, finish_reason=_FINISH, logprobs={"type": "null"})
_MODEL = record(
    id=TEXT,
    object={"const": "model"},
    created=COUNT,
    owned_by=TEXT,
    max_model_len=COUNT,
    cascade=record(recipe=TEXT, levels=several(TEXT), mode=TEXT, slots=COUNT, notes=several(TEXT)),
)

_FILE = record(
    id=TEXT,
    object={"const": "file"},
    bytes=COUNT,
    created_at=COUNT,
    expires_at=COUNT,
    filename=TEXT,
    purpose=TEXT,
    status={"const": "processed"},
)
_BATCH = record(
    id=TEXT,
    object={"const": "batch"},
    endpoint=TEXT,
    errors=optional(record(object={"const": "list"}, data=several({"type": "object"}))),
    input_file_id=TEXT,
    completion_window=TEXT,
    status=TEXT,
    output_file_id=optional(TEXT),
    error_file_id=optional(TEXT),
    created_at=COUNT,
    expires_at=COUNT,
    request_counts=record(total=COUNT, completed=COUNT, failed=COUNT),
    metadata=optional({"type": "object"}),
)


def _page_of(item: Json) -> Json:
    return record(
        object={"const": "list"},
        data=several(item),
        first_id=optional(TEXT),
        last_id=optional(TEXT),
        has_more={"type": "boolean"},
    )


SCHEMAS: dict[str, Json] = {
    "Error": record(error=_ERROR),
    "ChatCompletion": record(
        id=TEXT,
        object={"const": "chat.completion"},
        created=COUNT,
        model=TEXT,
        system_fingerprint=TEXT,
        choices={"type": "array", "items": _CHOICE, "minItems": 1, "maxItems": 1},
        usage=_USAGE,
        metrics=_METRICS,
        cascade=_CASCADE,
    ),
    "Model": _MODEL,
    "Models": record(object={"const": "list"}, data=several(_MODEL)),
    "CascadeRequest": record(
        id=TEXT,
        object={"const": "cascade.request"},
        status={"enum": ["running", "done", "failed", "cancelled"]},
        created=COUNT,
        ended_at=optional({"type": "number"}),
        stream={"type": "boolean"},
        finish_reason=optional(_FINISH),
        usage=optional(_USAGE),
        metrics=optional(_METRICS),
        cascade=optional(_CASCADE),
        error=optional(_ERROR),
    ),
    "Cancelled": record(id=TEXT, object={"const": "cascade.request"}, cancelled={"const": True}),
    "Trace": record(traceEvents=several({"type": "object"})),
    "Status": record(status={"const": "ok"}),
    "Ready": record(status={"const": "ok"}, without=several(TEXT)),
    "DeepHealth": record(status={"enum": ["ok", "failed"]}, ms=MS, stages={"type": "object"}),
    "Version": record(version=TEXT),
    "File": _FILE,
    "Files": _page_of(_FILE),
    "Deleted": record(id=TEXT, object={"const": "file"}, deleted={"const": True}),
    "Batch": _BATCH,
    "Batches": _page_of(_BATCH),
    "Samples": record(data=several(record(name=TEXT, title=TEXT))),
    "Frames": record(
        facts=record(events=COUNT, width=COUNT, height=COUNT, duration_us=COUNT, on_share=MS),
        simulated={"type": "boolean"},
        frames=several(
            record(start_us={"type": "integer"}, end_us={"type": "integer"}, events=COUNT, png=TEXT),
        ),
    ),
}
"""By name, as `components/schemas` of the document has them."""
