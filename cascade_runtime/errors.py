"""Every error this project raises on purpose, as one tree.

    CascadeError
    +-- ConfigError            a recipe or option: unknown key, impossible value
    +-- InputError             what a user handed over
    |   +-- EventFormatError   a recording that cannot be read (file, offset or field)
    |   +-- FeatureSpaceError  visual features of a space, shape or source a stage refuses
    |   +-- PromptTooLong      prompt + answer do not fit the KV slot
    +-- CapacityError          a bounded queue, slot pool or store is full (retry later)
    |   +-- RateLimitError     one caller asks for more than it may (retry after so many seconds)
    +-- DeadlineExceeded       a wait reached its deadline
    +-- ChannelError           a link between stages
    |   +-- ChannelClosed      the peer is gone, or the channel was closed
    |   +-- CallLost           a call to a stage, or what came of it, was lost on its way
    +-- StageError             a stage failed on a request (the request id is attached)
    |   +-- StageDied          its process has died, or hung and was killed (retry later)
    |   +-- FeaturesLost       what another stage had made for it is gone (retry later)
    |   +-- Quarantined        a stage has crashed with this request in it, again and again
    +-- RemoteError            a server: not reached, broke off, or said what its contract does not allow
        +-- AccessError        it does not know this key, or the key may not do this
        +-- NotFound           it has no such thing: a model, a request

`InputError` and `ConfigError` name the field, the value and what is allowed. An `assert` marks a programmer's error
only.
"""

from __future__ import annotations


class CascadeError(Exception):
    """Root of the tree. `retryable` says whether the same call may succeed later; `request_id` is of the request it
    ended, where that is known.
    """

    retryable = False
    request_id = ""


class _FieldError(CascadeError):
    """An error about one named field: which, what it was, and what is allowed."""

    def __init__(self, field: str, value: object, allowed: str) -> None:
        shown = repr(value)
        if len(shown) > 120:
            shown = shown[:117] + "..."
        super().__init__(f"{field}: got {shown}; allowed: {allowed}")
        self.field = field
        self.value = value
        self.allowed = allowed

    def __reduce__(self) -> tuple[object, ...]:  # survives the trip between processes
        return (type(self), (self.field, _Shown(repr(self.value)[:120]), self.allowed))


class _Shown(str):
    """A value as it was shown where the error was raised: it is not quoted once more."""

    __slots__ = ()
    __repr__ = str.__str__


class ConfigError(_FieldError):
    """A recipe or option names an unknown key or an impossible value."""


class InputError(_FieldError):
    """What a user handed over is not usable."""


class EventFormatError(InputError):
    """A recording that cannot be read: says which file, and the offset or field where it goes wrong."""

    def __init__(self, file: str, where: str, problem: str) -> None:
        super().__init__(f"{file} [{where}]", problem, "a well-formed recording")
        self.args = (f"{file}: {where}: {problem}",)
        self.file = file
        self.where = where
        self.problem = problem

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.file, self.where, self.problem))


class FeatureSpaceError(InputError):
    """Visual features of a space, shape, dtype or source that this stage does not accept."""


class PromptTooLong(InputError):
    """The prompt and the answer asked for do not fit a KV slot."""


class CapacityError(CascadeError):
    """A bounded queue, slot pool or store is full; the same call may succeed later."""

    retryable = True


class RateLimitError(CapacityError):
    """One caller asks for more than it may have at a time or in a minute."""

    def __init__(self, problem: str, retry_after_s: float) -> None:
        super().__init__(problem)
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (str(self), self.retry_after_s))


class DeadlineExceeded(CascadeError):
    """A wait reached its deadline."""

    retryable = True


class ChannelError(CascadeError):
    """A link between two stages failed."""

    retryable = True


class ChannelClosed(ChannelError):
    """The peer is gone, or this end was closed."""


class CallLost(ChannelError):
    """A call to a stage, or what came of it, was lost on its way: it may have been obeyed, or not."""


class StageError(CascadeError):
    """A stage failed on one request; only that request fails."""

    def __init__(self, stage: str, request_id: str, problem: str) -> None:
        super().__init__(f"stage {stage!r}, request {request_id!r}: {problem}")
        self.stage = stage
        self.request_id = request_id
        self.problem = problem

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.stage, self.request_id, self.problem))


class StageDied(StageError):
    """The stage's process has died, or hung and was killed; a supervised pipeline starts it anew."""

    retryable = True


class FeaturesLost(StageError):
    """What another stage had computed for this one is gone with that stage or its machine."""

    retryable = True


class Quarantined(StageError):
    """A stage has crashed with this request in it, again and again: it is not tried any more."""


class RemoteError(CascadeError):
    """A cascade behind an address was not reached, broke off, or answered what its contract does not allow.

    status: the HTTP status of its answer, 0 where there was none.
    """

    def __init__(self, problem: str, status: int = 0, *, retryable: bool = False) -> None:
        super().__init__(problem)
        self.status = status
        self.retryable = retryable

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (str(self), self.status))


class AccessError(RemoteError):
    """The server does not know this key, or the key may not do this."""


class NotFound(RemoteError):
    """The server has no such thing: a model, or a request that it no longer remembers."""
