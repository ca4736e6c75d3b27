"""Sessions: one question about a live source, answered for window after window, the newest first to be kept.

    source -> NewestWindows -> answer_windows: one `run` per window, one at a time        -> WindowAnswer
                               or the transport's own `session`: one call for all of them

Both are the same to a client. A transport that can keep one call open, sends the question once and lets the server drop
windows too, is a `SessionTransport`; every other one gets `answer_windows`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from cascade_runtime.api import Answer, GenerateRequest, WindowAnswer
from cascade_runtime.config import SamplingParams
from cascade_runtime.errors import CascadeError
from cascade_runtime.events import Events
from cascade_runtime.transports.base import Transport
from cascade_runtime.transports.windows import NewestWindows

_ONE = np.zeros(1, np.int64)
ONE_EVENT = Events(_ONE, _ONE, _ONE, _ONE, width=1, height=1)
"""The smallest recording: what a session's question is tried on before there is any."""


@dataclass(frozen=True)
class Window:
    """One stretch of a live source, numbered by who sends it."""

    number: int
    events: Events


@dataclass(frozen=True, kw_only=True)
class SessionTerms:
    """What is asked about every window. Raises `InputError`, now rather than for every window."""

    question: str
    sampling: SamplingParams = field(default_factory=SamplingParams)
    speculate: bool = True

    def __post_init__(self) -> None:
        self.request(ONE_EVENT)

    def request(self, events: Events) -> GenerateRequest:
        """The request about one window. Raises `InputError`, for a window without events too."""
        return GenerateRequest(events=events, question=self.question, sampling=self.sampling, speculate=self.speculate)


@runtime_checkable
class SessionTransport(Protocol):
    """A transport with a way of its own to answer windows."""

    def session(
        self, windows: NewestWindows[Window], terms: SessionTerms, timeout_s: float | None, waiting: int
    ) -> AsyncIterator[WindowAnswer]:
        """As `answer_windows`. waiting: how many windows may wait at the other end."""
        ...


async def answer_windows(
    transport: Transport, windows: NewestWindows[Window], terms: SessionTerms, timeout_s: float | None
) -> AsyncIterator[WindowAnswer]:
    """Answer windows one at a time until their queue is closed. timeout_s: for each of them."""
    while (window := await windows.get()) is not None:
        yield WindowAnswer(window.number, await _answer(transport, window, terms, timeout_s), windows.dropped)


async def _answer(
    transport: Transport, window: Window, terms: SessionTerms, timeout_s: float | None
) -> Answer | CascadeError:
    try:
        request = terms.request(window.events)
    except CascadeError as error:
        return error
    async for _, update in transport.run([request], timeout_s, False, 1):
        if isinstance(update, Answer | CascadeError):
            return update
    raise AssertionError("a transport ended without an answer")
