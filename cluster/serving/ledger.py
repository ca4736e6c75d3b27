"""What became of the last requests: one entry each, of the caller that asked it and for nobody else."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from cascade_runtime.api import Answer
from cascade_runtime.errors import CascadeError, StageError
from cluster.serving.chat_answer import ChatHead, cascade, metrics, usage
from cluster.serving.refusals import refusal_of
from cluster.serving.shared_runs import Run

_KEPT = 1000


@dataclass(eq=False)
class Entry:
    """One request. `head` is known once its body was valid, `outcome` once it has ended."""

    request_id: str
    created: int
    stream: bool
    run: Run | None = None
    head: ChatHead | None = None
    outcome: Answer | CascadeError | None = None
    ended_at: float | None = None  # Unix time; of one that was cancelled, its slots were free then, see `RayTransport`

    @property
    def status(self) -> str:
        if self.outcome is None:
            return "running"
        if isinstance(self.outcome, Answer):
            return "done"
        cancelled = isinstance(self.outcome, StageError) and self.outcome.problem == "cancelled"
        return "cancelled" if cancelled else "failed"

    def to_dict(self) -> dict[str, Any]:
        """A `cascade.request`; what is not known is None."""
        answer = self.outcome if isinstance(self.outcome, Answer) else None
        error = refusal_of(self.outcome) if isinstance(self.outcome, CascadeError) else None
        return {
            "id": self.request_id,
            "object": "cascade.request",
            "status": self.status,
            "created": self.created,
            "ended_at": self.ended_at,
            "stream": self.stream,
            "finish_reason": answer.finish_reason if answer else None,
            "usage": usage(answer) if answer else None,
            "metrics": metrics(answer) if answer else None,
            "cascade": cascade(self.head, answer) if answer and self.head else None,
            "error": error.body(self.request_id)["error"] if error else None,
        }


class Ledger:
    """Entries by caller and request id; of those that have ended the last thousand."""

    def __init__(self) -> None:
        self._entries: OrderedDict[tuple[str, str], Entry] = OrderedDict()

    def find(self, caller: str, request_id: str) -> Entry | None:
        """The entry of a request of this caller."""
        return self._entries.get((caller, request_id))

    def open(self, caller: str, entry: Entry) -> None:
        """Begin an entry; one of the same id that has ended is replaced."""
        self._entries.pop((caller, entry.request_id), None)
        self._entries[caller, entry.request_id] = entry
        ended = [key for key, one in self._entries.items() if one.outcome is not None]
        for key in ended[: max(0, len(self._entries) - _KEPT)]:
            del self._entries[key]
