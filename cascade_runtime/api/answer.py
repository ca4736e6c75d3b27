"""`Answer`: the text, the tokens, who said and who accepted each of them, and what it took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cascade_runtime.messages import acceptors, producer
from cascade_runtime.metrics import EdgeCounters

_COLOURS = (32, 33, 31, 36, 35, 34, 37, 90)  # green for the lightest stage, then yellow, red, cyan ...


@dataclass(frozen=True)
class Timings:
    """Milliseconds from the request's arrival. `spans` names what ran when: (stage, what, start, end)."""

    ttft_ms: float
    total_ms: float
    spans: tuple[tuple[str, str, float, float], ...] = ()

    def tokens_per_s(self, tokens: int) -> float:
        return 1000 * tokens / max(self.total_ms, 1e-9)


@dataclass(frozen=True)
class Answer:
    """One answer. Per token: its id, its piece of text, and the bit mask of the stages that stand by it.

    prompt_tokens: positions of the target's prompt, visual ones included; 0 where the target did not report them.
    """

    request_id: str
    text: str
    token_ids: tuple[int, ...]
    pieces: tuple[str, ...]
    finish_reason: str
    levels: tuple[str, ...]
    masks: tuple[int, ...]
    timings: Timings
    edges: tuple[EdgeCounters, ...] = ()
    gate: dict[str, object] | None = None
    mode: str = "strict"
    target_passes: int = 0
    prompt_tokens: int = 0
    notes: tuple[str, ...] = field(default=())

    @property
    def produced_by(self) -> tuple[str, ...]:
        """Per token, the stage that first proposed it."""
        return tuple(self.levels[producer(mask)] for mask in self.masks)

    @property
    def accepted_by(self) -> tuple[tuple[str, ...], ...]:
        """Per token, the later stages that chose the same; empty where the target had to say it itself."""
        return tuple(tuple(self.levels[stage] for stage in acceptors(mask)) for mask in self.masks)

    @property
    def tokens_per_s(self) -> float:
        return self.timings.tokens_per_s(len(self.token_ids))

    def colored(self) -> str:
        """The answer with every token in the colour of the stage that produced it (ANSI)."""
        return "".join(
            f"\x1b[{_COLOURS[producer(mask)]}m{piece}\x1b[0m"
            for piece, mask in zip(self.pieces, self.masks, strict=True)
        )

    def to_dict(self) -> dict[str, object]:
        """Everything as plain data for JSON."""
        return {
            "request_id": self.request_id,
            "text": self.text,
            "token_ids": list(self.token_ids),
            "finish_reason": self.finish_reason,
            "produced_by": list(self.produced_by),
            "accepted_by": [list(names) for names in self.accepted_by],
            "mode": self.mode,
            "gate": self.gate,
            "ttft_ms": round(self.timings.ttft_ms, 2),
            "total_ms": round(self.timings.total_ms, 2),
            "tokens_per_s": round(self.tokens_per_s, 2),
            "target_passes": self.target_passes,
            "prompt_tokens": self.prompt_tokens,
            "edges": [edge.to_dict() for edge in self.edges],
            "spans": [list(span) for span in self.timings.spans],
            "notes": list(self.notes),
        }


def legend(levels: Sequence[str]) -> str:
    """The colours of `Answer.colored`, named (ANSI)."""
    return "  ".join(f"\x1b[{_COLOURS[k]}m{name}\x1b[0m" for k, name in enumerate(levels))
