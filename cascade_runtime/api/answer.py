"""`Answer`: the text, the tokens, who said and who accepted each of them, and what it took."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cascade_runtime.api.answer_html import answer_html
from cascade_runtime.messages import acceptors, producer
from cascade_runtime.metrics import EdgeCounters

MAX_REJECTIONS = 256
_COLOURS = (32, 33, 31, 36, 35, 34, 37, 90)  # green for the lightest stage, then yellow, red, cyan ...


@dataclass(frozen=True)
class Timings:
    """Milliseconds from the request's arrival. `spans` names what ran when: (stage, what, start, end)."""

    ttft_ms: float
    total_ms: float
    spans: tuple[tuple[str, str, float, float], ...] = ()

    @property
    def queue_ms(self) -> float | None:
        """Until its first stage began; None where no stage told."""
        return max(0.0, min(start for _, _, start, _ in self.spans)) if self.spans else None

    def tokens_per_s(self, tokens: int) -> float:
        return 1000 * tokens / max(self.total_ms, 1e-9)

    def chrome_trace(self) -> dict[str, Any]:
        """The spans for ui.perfetto.dev or chrome://tracing: a process per stage, times in microseconds."""
        pids = {stage: pid for pid, stage in enumerate(dict.fromkeys(stage for stage, *_ in self.spans))}
        events: list[dict[str, Any]] = [
            {"name": "process_name", "ph": "M", "pid": pid, "tid": 0, "args": {"name": name}}
            for name, pid in pids.items()
        ]
        for stage, what, start_ms, end_ms in self.spans:
            times = {"ts": 1000 * start_ms, "dur": 1000 * (end_ms - start_ms)}
            events.append({"name": what, "ph": "X", "pid": pids[stage], "tid": 0, **times})
        return {"traceEvents": events, "displayTimeUnit": "ms"}


@dataclass(frozen=True)
class Rejection:
    """Drafts that a stage looked at and refused: what they would have said from answer position `position` on.

    by: the index of the stage that refused them; masks: per token, the stages that stood by it; text: what they say.
    """

    position: int
    by: int
    token_ids: tuple[int, ...]
    masks: tuple[int, ...]
    text: str = ""


def in_words(rejections: Iterable[Rejection], words: Callable[[Sequence[int]], str]) -> tuple[Rejection, ...]:
    """Rejections by position, as many as an answer holds, each with the text that `words` gives its tokens."""
    ordered = sorted(rejections, key=lambda each: (each.position, each.by))[:MAX_REJECTIONS]
    return tuple(replace(each, text=words(each.token_ids)) for each in ordered)


@dataclass(frozen=True)
class Answer:
    """One answer. Per token: its id, its piece of text, and the bit mask of the stages that stand by it.

    prompt_tokens: positions of the target's prompt, visual ones included; 0 where the target did not report them.
    rejections: the first `MAX_REJECTIONS` blocks of drafts that did not come to be part of it, by position.
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
    rejections: tuple[Rejection, ...] = field(default=())

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

    def _repr_html_(self) -> str:
        """The same for a notebook, with who accepted each token in its tooltip."""
        return answer_html(self)

    def to_dict(self) -> dict[str, object]:
        """Everything as plain data for JSON."""
        return {
            "request_id": self.request_id,
            "text": self.text,
            "token_ids": list(self.token_ids),
            "pieces": list(self.pieces),
            "levels": list(self.levels),
            "masks": list(self.masks),
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
            "rejections": [asdict(rejection) for rejection in self.rejections],
        }


def legend(levels: Sequence[str]) -> str:
    """The colours of `Answer.colored`, named (ANSI)."""
    return "  ".join(f"\x1b[{_COLOURS[k]}m{name}\x1b[0m" for k, name in enumerate(levels))
