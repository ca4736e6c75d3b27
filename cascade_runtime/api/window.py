"""`WindowAnswer`: what became of one window of a session."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cascade_runtime.api.answer import Answer
    from cascade_runtime.errors import CascadeError


@dataclass(frozen=True)
class WindowAnswer:
    """number: of the window, as `send` gave it; outcome: its answer, or why there is none (the session goes on);
    dropped: windows of this session that were not answered since newer ones came, so far.
    """

    number: int
    outcome: Answer | CascadeError
    dropped: int
