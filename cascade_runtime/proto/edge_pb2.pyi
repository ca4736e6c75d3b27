from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FromEdge(_message.Message):
    __slots__ = ("taken", "hello", "batch", "pulse", "drafts")
    TAKEN_FIELD_NUMBER: _ClassVar[int]
    HELLO_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    PULSE_FIELD_NUMBER: _ClassVar[int]
    DRAFTS_FIELD_NUMBER: _ClassVar[int]
    taken: int
    hello: Hello
    batch: Batch
    pulse: Pulse
    drafts: bytes
    def __init__(self, taken: _Optional[int] = ..., hello: _Optional[_Union[Hello, _Mapping]] = ..., batch: _Optional[_Union[Batch, _Mapping]] = ..., pulse: _Optional[_Union[Pulse, _Mapping]] = ..., drafts: _Optional[bytes] = ...) -> None: ...

class FromCore(_message.Message):
    __slots__ = ("accepted", "limit", "welcome", "pulse", "outcome", "verdicts")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    PULSE_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    VERDICTS_FIELD_NUMBER: _ClassVar[int]
    accepted: int
    limit: int
    welcome: Welcome
    pulse: Pulse
    outcome: Outcome
    verdicts: bytes
    def __init__(self, accepted: _Optional[int] = ..., limit: _Optional[int] = ..., welcome: _Optional[_Union[Welcome, _Mapping]] = ..., pulse: _Optional[_Union[Pulse, _Mapping]] = ..., outcome: _Optional[_Union[Outcome, _Mapping]] = ..., verdicts: _Optional[bytes] = ...) -> None: ...

class Pulse(_message.Message):
    __slots__ = ("now_ns", "echo_ns", "held_ns")
    NOW_NS_FIELD_NUMBER: _ClassVar[int]
    ECHO_NS_FIELD_NUMBER: _ClassVar[int]
    HELD_NS_FIELD_NUMBER: _ClassVar[int]
    now_ns: int
    echo_ns: int
    held_ns: int
    def __init__(self, now_ns: _Optional[int] = ..., echo_ns: _Optional[int] = ..., held_ns: _Optional[int] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("version", "session", "first", "cut", "question", "sampling", "newest", "width", "height")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    CUT_FIELD_NUMBER: _ClassVar[int]
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    NEWEST_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    version: int
    session: bytes
    first: int
    cut: str
    question: str
    sampling: Sampling
    newest: bool
    width: int
    height: int
    def __init__(self, version: _Optional[int] = ..., session: _Optional[bytes] = ..., first: _Optional[int] = ..., cut: _Optional[str] = ..., question: _Optional[str] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., newest: _Optional[bool] = ..., width: _Optional[int] = ..., height: _Optional[int] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("temperature", "top_k", "top_p", "seed", "max_tokens", "stop")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_k: int
    top_p: float
    seed: int
    max_tokens: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., seed: _Optional[int] = ..., max_tokens: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("resumed", "recipe", "cuts", "rule", "options", "counts", "source_space", "target_space", "drafter")
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    CUTS_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_SPACE_FIELD_NUMBER: _ClassVar[int]
    TARGET_SPACE_FIELD_NUMBER: _ClassVar[int]
    DRAFTER_FIELD_NUMBER: _ClassVar[int]
    resumed: bool
    recipe: str
    cuts: _containers.RepeatedScalarFieldContainer[str]
    rule: str
    options: str
    counts: bool
    source_space: str
    target_space: str
    drafter: Drafter
    def __init__(self, resumed: _Optional[bool] = ..., recipe: _Optional[str] = ..., cuts: _Optional[_Iterable[str]] = ..., rule: _Optional[str] = ..., options: _Optional[str] = ..., counts: _Optional[bool] = ..., source_space: _Optional[str] = ..., target_space: _Optional[str] = ..., drafter: _Optional[_Union[Drafter, _Mapping]] = ...) -> None: ...

class Drafter(_message.Message):
    __slots__ = ("tokenizer", "vocab_size", "ends", "space")
    TOKENIZER_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    ENDS_FIELD_NUMBER: _ClassVar[int]
    SPACE_FIELD_NUMBER: _ClassVar[int]
    tokenizer: str
    vocab_size: int
    ends: _containers.RepeatedScalarFieldContainer[int]
    space: str
    def __init__(self, tokenizer: _Optional[str] = ..., vocab_size: _Optional[int] = ..., ends: _Optional[_Iterable[int]] = ..., space: _Optional[str] = ...) -> None: ...

class Batch(_message.Message):
    __slots__ = ("seq", "crc32", "body")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    CRC32_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    seq: int
    crc32: int
    body: bytes
    def __init__(self, seq: _Optional[int] = ..., crc32: _Optional[int] = ..., body: _Optional[bytes] = ...) -> None: ...

class WindowPart(_message.Message):
    __slots__ = ("number", "last", "begin_us", "end_us", "closed_ns", "packed_ns", "payload", "rendered", "ingest", "clock_ns", "drafts")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    BEGIN_US_FIELD_NUMBER: _ClassVar[int]
    END_US_FIELD_NUMBER: _ClassVar[int]
    CLOSED_NS_FIELD_NUMBER: _ClassVar[int]
    PACKED_NS_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    RENDERED_FIELD_NUMBER: _ClassVar[int]
    INGEST_FIELD_NUMBER: _ClassVar[int]
    CLOCK_NS_FIELD_NUMBER: _ClassVar[int]
    DRAFTS_FIELD_NUMBER: _ClassVar[int]
    number: int
    last: bool
    begin_us: int
    end_us: int
    closed_ns: int
    packed_ns: int
    payload: bytes
    rendered: Rendered
    ingest: Ingest
    clock_ns: int
    drafts: bool
    def __init__(self, number: _Optional[int] = ..., last: _Optional[bool] = ..., begin_us: _Optional[int] = ..., end_us: _Optional[int] = ..., closed_ns: _Optional[int] = ..., packed_ns: _Optional[int] = ..., payload: _Optional[bytes] = ..., rendered: _Optional[_Union[Rendered, _Mapping]] = ..., ingest: _Optional[_Union[Ingest, _Mapping]] = ..., clock_ns: _Optional[int] = ..., drafts: _Optional[bool] = ...) -> None: ...

class Rendered(_message.Message):
    __slots__ = ("rule", "options", "source", "events", "duration_us", "occupancy", "source_space", "target_space")
    RULE_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    DURATION_US_FIELD_NUMBER: _ClassVar[int]
    OCCUPANCY_FIELD_NUMBER: _ClassVar[int]
    SOURCE_SPACE_FIELD_NUMBER: _ClassVar[int]
    TARGET_SPACE_FIELD_NUMBER: _ClassVar[int]
    rule: str
    options: str
    source: str
    events: int
    duration_us: int
    occupancy: float
    source_space: str
    target_space: str
    def __init__(self, rule: _Optional[str] = ..., options: _Optional[str] = ..., source: _Optional[str] = ..., events: _Optional[int] = ..., duration_us: _Optional[int] = ..., occupancy: _Optional[float] = ..., source_space: _Optional[str] = ..., target_space: _Optional[str] = ...) -> None: ...

class Ingest(_message.Message):
    __slots__ = ("windows", "empty", "dropped", "joined", "events", "events_dropped")
    WINDOWS_FIELD_NUMBER: _ClassVar[int]
    EMPTY_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    JOINED_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    EVENTS_DROPPED_FIELD_NUMBER: _ClassVar[int]
    windows: int
    empty: int
    dropped: int
    joined: int
    events: int
    events_dropped: int
    def __init__(self, windows: _Optional[int] = ..., empty: _Optional[int] = ..., dropped: _Optional[int] = ..., joined: _Optional[int] = ..., events: _Optional[int] = ..., events_dropped: _Optional[int] = ...) -> None: ...

class Outcome(_message.Message):
    __slots__ = ("seq", "kind", "number", "answer", "error", "problem", "received_ns", "checked_ns", "started_ns", "first_ns", "done_ns", "drafted", "accepted")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNKNOWN: _ClassVar[Outcome.Kind]
        PART: _ClassVar[Outcome.Kind]
        ANSWERED: _ClassVar[Outcome.Kind]
        FAILED: _ClassVar[Outcome.Kind]
        DROPPED: _ClassVar[Outcome.Kind]
    UNKNOWN: Outcome.Kind
    PART: Outcome.Kind
    ANSWERED: Outcome.Kind
    FAILED: Outcome.Kind
    DROPPED: Outcome.Kind
    SEQ_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_NS_FIELD_NUMBER: _ClassVar[int]
    CHECKED_NS_FIELD_NUMBER: _ClassVar[int]
    STARTED_NS_FIELD_NUMBER: _ClassVar[int]
    FIRST_NS_FIELD_NUMBER: _ClassVar[int]
    DONE_NS_FIELD_NUMBER: _ClassVar[int]
    DRAFTED_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    seq: int
    kind: Outcome.Kind
    number: int
    answer: Said
    error: str
    problem: str
    received_ns: int
    checked_ns: int
    started_ns: int
    first_ns: int
    done_ns: int
    drafted: int
    accepted: int
    def __init__(self, seq: _Optional[int] = ..., kind: _Optional[_Union[Outcome.Kind, str]] = ..., number: _Optional[int] = ..., answer: _Optional[_Union[Said, _Mapping]] = ..., error: _Optional[str] = ..., problem: _Optional[str] = ..., received_ns: _Optional[int] = ..., checked_ns: _Optional[int] = ..., started_ns: _Optional[int] = ..., first_ns: _Optional[int] = ..., done_ns: _Optional[int] = ..., drafted: _Optional[int] = ..., accepted: _Optional[int] = ...) -> None: ...

class Said(_message.Message):
    __slots__ = ("text", "token_ids", "masks", "levels", "finish_reason", "mode", "target_passes", "notes")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    MASKS_FIELD_NUMBER: _ClassVar[int]
    LEVELS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    TARGET_PASSES_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    masks: bytes
    levels: _containers.RepeatedScalarFieldContainer[str]
    finish_reason: str
    mode: str
    target_passes: int
    notes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., masks: _Optional[bytes] = ..., levels: _Optional[_Iterable[str]] = ..., finish_reason: _Optional[str] = ..., mode: _Optional[str] = ..., target_passes: _Optional[int] = ..., notes: _Optional[_Iterable[str]] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("sessions",)
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    sessions: _containers.RepeatedCompositeFieldContainer[SessionStatus]
    def __init__(self, sessions: _Optional[_Iterable[_Union[SessionStatus, _Mapping]]] = ...) -> None: ...

class SessionStatus(_message.Message):
    __slots__ = ("session", "connected", "cut", "question", "accepted", "taken", "waiting", "answered", "failed", "dropped", "repeated_batches", "refused_batches", "connections", "payload_bytes", "ingest", "latency_ms", "drafted", "accepted_drafts", "draft_blocks", "refused_drafts")
    class LatencyMsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    SESSION_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    CUT_FIELD_NUMBER: _ClassVar[int]
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    TAKEN_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    REPEATED_BATCHES_FIELD_NUMBER: _ClassVar[int]
    REFUSED_BATCHES_FIELD_NUMBER: _ClassVar[int]
    CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    INGEST_FIELD_NUMBER: _ClassVar[int]
    LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    DRAFTED_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_DRAFTS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_DRAFTS_FIELD_NUMBER: _ClassVar[int]
    session: str
    connected: bool
    cut: str
    question: str
    accepted: int
    taken: int
    waiting: int
    answered: int
    failed: int
    dropped: int
    repeated_batches: int
    refused_batches: int
    connections: int
    payload_bytes: int
    ingest: Ingest
    latency_ms: _containers.ScalarMap[str, float]
    drafted: int
    accepted_drafts: int
    draft_blocks: int
    refused_drafts: int
    def __init__(self, session: _Optional[str] = ..., connected: _Optional[bool] = ..., cut: _Optional[str] = ..., question: _Optional[str] = ..., accepted: _Optional[int] = ..., taken: _Optional[int] = ..., waiting: _Optional[int] = ..., answered: _Optional[int] = ..., failed: _Optional[int] = ..., dropped: _Optional[int] = ..., repeated_batches: _Optional[int] = ..., refused_batches: _Optional[int] = ..., connections: _Optional[int] = ..., payload_bytes: _Optional[int] = ..., ingest: _Optional[_Union[Ingest, _Mapping]] = ..., latency_ms: _Optional[_Mapping[str, float]] = ..., drafted: _Optional[int] = ..., accepted_drafts: _Optional[int] = ..., draft_blocks: _Optional[int] = ..., refused_drafts: _Optional[int] = ...) -> None: ...
