"""`Batch`: what is known of one batch, as it is kept on disk and told.

validating ─> in_progress ─> finalizing ─> completed        a bad line in the input: failed
                   └─> cancelling ─> cancelled, or expired after a day; what was answered till then can be read
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ENDPOINT = "/v1/chat/completions"
WINDOW = "24h"
WINDOW_S = 86_400
ENDED = ("completed", "failed", "expired", "cancelled")
_STAMPS = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")


@dataclass(kw_only=True)
class Batch:
    """One batch. output, error: ids of the files its lines are written to, told once they are whole. at: when it came
    to each status, Unix seconds. total: rows of the input, known once it was read.
    """

    id: str
    owner: str
    input_file_id: str
    created: int
    output: str
    error: str
    metadata: dict[str, str] | None = None
    status: str = "validating"
    at: dict[str, int] = field(default_factory=dict[str, int])
    total: int = 0
    completed: int = 0
    failed: int = 0
    problems: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    written: list[str] = field(default_factory=list[str])

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Batch:
        """The batch that was written down with `asdict`. Raises `TypeError` for anything else."""
        return cls(**told)

    @property
    def expires(self) -> int:
        return self.created + WINDOW_S

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    def become(self, status: str, now: float) -> None:
        """Change the status; the first time counts."""
        self.status = status
        self.at.setdefault(status, int(now))

    def to_dict(self) -> dict[str, Any]:
        """OpenAI's batch object."""
        problems = {"object": "list", "data": self.problems} if self.problems else None
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": ENDPOINT,
            "errors": problems,
            "input_file_id": self.input_file_id,
            "completion_window": WINDOW,
            "status": self.status,
            "output_file_id": self.output if self.output in self.written else None,
            "error_file_id": self.error if self.error in self.written else None,
            "created_at": self.created,
            "expires_at": self.expires,
            **{f"{name}_at": self.at.get(name) for name in _STAMPS},
            "request_counts": {"total": self.total, "completed": self.completed, "failed": self.failed},
            "metadata": self.metadata,
        }
