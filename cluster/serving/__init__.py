"""The HTTP API of a cascade: OpenAI's chat completions over recordings, and what a cascade has to tell beyond that.

    settings.py      how a server is set up; refuses a public address without API keys
    chat_request.py  the one validator: a body as a dict -> `GenerateRequest` and options (HTTP, gRPC, handle, batch)
    media.py         data URLs and allow-listed files -> recordings; nothing is ever fetched
    chat_answer.py   an `Answer` as OpenAI's JSON, whole or in chunks
    refusals.py      errors as OpenAI's JSON: status, code, nothing that the caller need not know
    api_keys.py      who may ask;  admission.py  how many at a time;  shared_runs.py  the same key, the same answer
    ledger.py        what became of the last requests;  gateway.py  all of that in front of one pipeline
    health.py        is every stage there;  counters.py  /metrics
    guard.py         keys, or this machine only;  routes.py  paths around the gateway;  event_stream.py  SSE
    names.py         ids and keys that callers give;  readiness.py  would a request be answered now
    rpc/             the same over gRPC (cascade_runtime/proto/cascade.proto);  handle.py  from other deployments
    files/           what callers leave here;  batches/  files of questions, answered when nobody waits
    pipeline_view.py what every stage is doing, as it does it;  merged_metrics.py  several replicas on one page
    proxy_limits.py  what Serve's proxies take in front of all that
    openapi.py       all of it as an OpenAPI document; chat_schema.py from the validator's tables;  answer_schema.py
    page.py          the web page (files in cluster/web/), its samples and pictures

    POST   /v1/chat/completions                GET /v1/models   GET /v1/models/{id}
    GET    /v1/cascade/requests/{id}           GET /v1/cascade/requests/{id}/trace       Chrome trace, for Perfetto
    DELETE /v1/cascade/requests/{id}           POST /v1/cascade/requests/{id}/cancel     the same
    GET    /v1/cascade/pipeline                server-sent events: what every stage is doing
    POST   /v1/files   GET /v1/files   GET, DELETE /v1/files/{id}   GET /v1/files/{id}/content
    POST   /v1/batches   GET /v1/batches   GET /v1/batches/{id}   POST /v1/batches/{id}/cancel
    GET    /health   /ready   /health/deep     /metrics   /version   /openapi.json
    GET    /   /page/{file}                    GET /v1/cascade/samples   /v1/cascade/samples/{name}
                                               POST /v1/cascade/frames

With API keys all of it but /health, /ready, / and /page/ wants `Authorization: Bearer KEY`. Without, only this machine
may ask.

Request (application/json). Only `messages` is required, one of role "user" with one recording and some text:

    {"model": "cascade", "stream": false, "stream_options": {"include_usage": true},
     "temperature": 0, "top_p": 1, "top_k": 0, "seed": 7, "max_tokens": 80, "stop": ["."], "n": 1,
     "messages": [{"role": "user", "content": [
       {"type": "events_url", "events_url": {"url": "data:application/vnd.apache.arrow.stream;base64,..."}},
       {"type": "text", "text": "What is moving?"}]}],
     "cascade": {"deadline_ms": 4000, "speculate": true, "clip": {"t_start_us": 0, "t_end_us": 50000}}}

- `temperature` is 0 (greedy) unless given; `max_tokens` (or `max_completion_tokens`) 80; without `seed` a sampled
  answer gets one at random, which `cascade.seed` tells. `top_k`, `ignore_eos` and `cascade` are not OpenAI's (with its
  SDK: `extra_body`). `cascade.clip` counts from the recording's first event. `cascade.deadline_ms` counts from the
  request's arrival; the server's own deadline holds as well.
- `events_url` and `video_url` are one thing; the media type decides. Events: application/vnd.apache.arrow.stream or
  .file, application/vnd.apache.parquet, application/x-npz, application/x-npy (no objects), text/csv, or
  application/octet-stream, whose `format` is npz, npy, arrow, parquet, text, bin, evt2, evt3, aedat4 or rosbag, and
  without one is found by content. Beside `url` may stand `format`, and `width` and `height` of the sensor.
- Video becomes *simulated* events, which `cascade.input.simulated` says: data:video/jpeg;base64,FRAME,FRAME,... with
  `fps` (30), and video/mp4, /webm, /quicktime, /x-matroska, /x-msvideo, where PyAV is installed.
- {"type": "file", "file": {"file_id": "file-..."}} is a recording that its caller uploaded; `format` and its like
  may stand there, too. Its name decides between video and events where the content does not.
- A URL that is no data URL is refused; file: URLs are read below the directory that the server was given, if any.
- Ignored: user, metadata, store, service_tier, safety_identifier, prompt_cache_key, prompt_cache_retention,
  parallel_tool_calls, and in `stream_options` include_obfuscation and continuous_usage_stats (usage comes once, at
  the end). Accepted only where they ask for nothing: n = 1, penalties 0 or 1, logprobs false, tools [],
  response_format text and their like. Everything else is 400, and so are other roles than "user" and a second turn.
- Headers: `X-Request-Id` (1 to 64 of A-Z a-z 0-9 _ . : -) names the request; `Idempotency-Key`: the same key and body
  give the same answer without a second run for ten minutes, another body is 422. (Limits, keys and lookups are a
  replica's own; lookups, cancels and /metrics ask the other replicas too.)

Answer:

    {"id": "chatcmpl-REQUEST_ID", "object": "chat.completion", "created": 1790000000, "model": "cascade",
     "system_fingerprint": "cascade-0.1.0-three_level",
     "choices": [{"index": 0, "message": {"role": "assistant", "content": "...", "refusal": null},
                  "finish_reason": "stop", "logprobs": null}],
     "usage": {"prompt_tokens": 51, "completion_tokens": 24, "total_tokens": 75,
               "completion_tokens_details": {"accepted_prediction_tokens": 17, "rejected_prediction_tokens": 9}},
     "metrics": {"time_to_first_token_ms": 41.0, "generation_time_ms": 120.0, "queue_time_ms": 0.2, "mean_itl_ms": 3.4,
                 "tokens_per_second": 149.1,
                 "speculative_decoding": {"mean_acceptance_length": 2.67, "draft_acceptance_rate": 0.42,
                   "acceptance_histogram": [0, 1, 2, 0, 0], "num_spec_steps": 3, "num_accepted_draft_tokens": 5,
                   "num_draft_tokens": 12, "num_spec_tokens": 4}},
     "cascade": {
       "request_id": "REQUEST_ID", "recipe": "three_level", "mode": "strict", "seed": 0, "target_passes": 5,
       "input": {"events": 3000, "width": 128, "height": 96, "duration_us": 50000, "simulated": false},
       "gate": {"decision": "accepted", "cosine": 0.93, "policy": "full", "cosines": [0.93], "baselines": [0.1],
                "verdicts": ["accepted"]},
       "stages": [{"name": "light", "produced": 17, "drafted": 26, "accepted_by_next": 17},
                  {"name": "heavy", "produced": 7, "drafted": 0, "accepted_by_next": 0}],
       "token_ids": [12, 7, 99], "pieces": ["A", " bar", "."],
       "spans": [{"start": 0, "end": 2, "by": "light", "accepted_by": ["mid", "heavy"]},
                 {"start": 2, "end": 3, "by": "heavy", "accepted_by": []}],
       "edges": [{"edge": "light-heavy", "spec_decode_num_drafts": 3, ...}],
       "rejections": [{"position": 2, "by": 1, "token_ids": [4], "masks": [1], "text": " car"}],
       "timeline": [{"stage": "encoder", "what": "encode", "start_ms": 0.4, "end_ms": 5.1}],
       "notes": []}}

Times are milliseconds from the request's arrival at the pipeline. `generation_time_ms` is from the first token to the
last, `mean_itl_ms` that per token (null for one token). `finish_reason` is "stop" or "length".
`speculative_decoding` (of the edge into the target, vLLM's counts) is null where nothing was drafted, `gate` where
nothing was adapted; `gate.decision` is "mixed" where frames differ, and `gate.cosine` their mean. `spans` are runs of
tokens [start, end): who said them first, and which later stages chose the same. `rejections` are drafts that stage
number `by` looked at and refused, `position` in the answer on. Accepted predictions are tokens that
another stage than the target said first. A note says what did not take part, or that devices are emulated.

Stream: `data: {...}` per round in which the target confirmed tokens, then `data: [DONE]`. Each chunk has `object`
"chat.completion.chunk" and the `id`, `created`, `model`, `system_fingerprint` of the answer, and of these in order:

    "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": null, "logprobs": null}],
        "cascade": {"request_id": "REQUEST_ID", "levels": ["light", "heavy"]}
    "choices": [{... "delta": {"content": "A bar"} ...}], "cascade": {"token_ids": [12, 7],
        "pieces": ["A", " bar"], "spans": [{"start": 0, "end": 2, "by": "light", "accepted_by": ["heavy"]}]}
    "choices": [{... "delta": {}, "finish_reason": "stop" ...}]
        and, unless another chunk follows, "metrics": {...}, "cascade": {...}, the whole answer's
    "choices": [], "usage": {...}, "metrics": {...}, "cascade": {...}
        with stream_options.include_usage only; all other chunks then have "usage": null

The content of all chunks is the whole answer's; a round's may be empty, while half a character or of a stop string
waits. A failure after the first chunk is `data: {"error": {...}}`, then [DONE].

Errors, always: {"error": {"message", "type", "param", "code", "retryable", "request_id"}}. By status, type and code:

    400  invalid_request_error   invalid_json, invalid_value, context_length_exceeded, media_rejected
    401  authentication_error    invalid_api_key           403  permission_error       not_local
    404  not_found_error         model_not_found, not_found
    405  invalid_request_error   method_not_allowed        408, 413, 415  body_too_slow, body_too_large,
    409  invalid_request_error   request_id_in_use                        unsupported_media_type
    422  invalid_request_error   idempotency_key_reused    429  rate_limit_error       rate_limit_exceeded (of one key)
    499  request_cancelled       cancelled                 500  server_error           stage_failed, internal_error
    503  server_error            overloaded, draining, not_ready
    504  server_error            deadline_exceeded

Where a retry may help, `retryable` is true and `Retry-After` says when; elsewhere `x-should-retry: false` tells
OpenAI's clients to leave it.

Files are OpenAI's: a form with `purpose` ("batch", or "user_data" and "vision" for recordings), `file`, perhaps
`expires_after`; each caller sees its own. They are kept for 30 days, 1,000 of a caller, in one private folder that
the server was given, or else as long as the replica lives (with several replicas and no folder there are none).

Batches are OpenAI's: lines {"custom_id", "method": "POST", "url": "/v1/chat/completions", "body"} of an uploaded file,
50,000 at most, eight batches of a caller at a time. All lines are checked first; one that is wrong fails the batch.
Rows then take slots that nobody else wants, all but one, and count for none of their caller's limits. Answers go to
`output_file_id`, others to `error_file_id`, both there when the batch has ended, whatever its end. A server that is
stopped goes on with what is unfinished where it was given a folder; a line once written is not asked again.

GET /v1/cascade/requests/{id}, of the same key, among the last thousand (what is not known is null):

    {"id", "object": "cascade.request", "status": "running" | "done" | "failed" | "cancelled", "created",
     "ended_at", "stream", "finish_reason", "usage", "metrics", "cascade", "error"}

ended_at: Unix time, to the millisecond; the slots of one that was cancelled were free by then, where the stages answer.
Cancelling: {"id", "object": "cascade.request", "cancelled": true}, or 404 for one that does not run. /v1/models lists
one model, {"id", "object": "model", "created", "owned_by", "max_model_len", "cascade": {"recipe", "levels", "mode",
"slots", "notes"}}, which answers to its recipe's name as well. /ready: {"status": "ok", "without": [dead stages]}.
/health/deep: {"status": "ok" | "failed", "ms", "stages": {name: "ok" | what is wrong}} of one token through all
stages, with 503 where it is not ok. /metrics: what vLLM counts under vLLM's names and its label `model_name`, so that
dashboards made for vLLM show a cascade; the rest under `cascade:`.
"""
