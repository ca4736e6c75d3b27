"""An `Answer` as OpenAI's JSON, whole or in the chunks of a stream, with vLLM's `metrics` and a `cascade` object.

Pure: dicts out. What every field means is written in `cluster/serving/__init__.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cascade_runtime.api import Answer, Piece
from cascade_runtime.messages import acceptors, producer
from cascade_runtime.metrics import EdgeCounters

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ChatHead:
    """What all chunks of one answer have in common. created: Unix seconds; levels: stages from light to target;
    include_usage: a stream of it ends in a chunk with counts.
    """

    request_id: str
    created: int
    model: str
    fingerprint: str
    recipe: str
    levels: tuple[str, ...]
    seed: int
    recording: Json
    include_usage: bool

    def envelope(self, kind: str) -> Json:
        """The fields in front of every answer and chunk."""
        return {
            "id": f"chatcmpl-{self.request_id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


def completion(head: ChatHead, answer: Answer) -> Json:
    """The whole answer: a `chat.completion`."""
    message = {"role": "assistant", "content": answer.text, "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": answer.finish_reason, "logprobs": None}
    told = {"usage": usage(answer), "metrics": metrics(answer), "cascade": cascade(head, answer)}
    return {**head.envelope("chat.completion"), "choices": [choice], **told}


class ChunkWriter:
    """The chunks of one stream, in order: `opening`, `of` each piece, `closing`."""

    def __init__(self, head: ChatHead) -> None:
        self._head = head
        self._envelope = head.envelope("chat.completion.chunk")
        self._usage: Json = {"usage": None} if head.include_usage else {}  # OpenAI's: null in all chunks but the last
        self._tokens = 0

    def opening(self) -> Json:
        """The chunk that only says who speaks."""
        told = {"request_id": self._head.request_id, "levels": list(self._head.levels)}
        return self._chunk({"role": "assistant", "content": ""}) | {"cascade": told}

    def of(self, piece: Piece) -> Json:
        """The chunk of one round: its text, and who said its tokens."""
        spans = token_spans(self._head.levels, piece.masks, self._tokens)
        self._tokens += len(piece.tokens)
        told = {"token_ids": list(piece.tokens), "pieces": list(piece.words), "spans": spans}
        return self._chunk({"content": str(piece)}) | {"cascade": told}

    def closing(self, answer: Answer) -> Iterator[Json]:
        """Why it ended; then, with usage or without, all there is to tell."""
        told = {"metrics": metrics(answer), "cascade": cascade(self._head, answer)}
        last = self._chunk({}, answer.finish_reason)
        if not self._usage:
            yield last | told
            return
        yield last
        yield {**self._envelope, "choices": [], "usage": usage(answer), **told}

    def _chunk(self, delta: Json, finish_reason: str | None = None) -> Json:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return {**self._envelope, "choices": [choice], **self._usage}


def usage(answer: Answer) -> Json:
    """OpenAI's counts. Accepted predictions are answer tokens that a drafter said first; rejected ones, drafts that the
    target refused.
    """
    target = len(answer.levels) - 1
    last = _last_edge(answer)
    details = {
        "accepted_prediction_tokens": sum(producer(mask) != target for mask in answer.masks),
        "rejected_prediction_tokens": last.num_draft_tokens - last.num_accepted_tokens if last else 0,
    }
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": len(answer.token_ids),
        "total_tokens": answer.prompt_tokens + len(answer.token_ids),
        "completion_tokens_details": details,
    }


def metrics(answer: Answer) -> Json:
    """vLLM's request metrics; times in milliseconds from the request's arrival at the pipeline."""
    timings, count = answer.timings, len(answer.token_ids)
    generation_ms = max(0.0, timings.total_ms - timings.ttft_ms)
    return {
        "time_to_first_token_ms": round(timings.ttft_ms, 3),
        "generation_time_ms": round(generation_ms, 3),
        "queue_time_ms": None if timings.queue_ms is None else round(timings.queue_ms, 3),
        "mean_itl_ms": round(generation_ms / (count - 1), 3) if count > 1 else None,
        "tokens_per_second": round(answer.tokens_per_s, 3),
        "speculative_decoding": _speculative_decoding(_last_edge(answer)),
    }


def cascade(head: ChatHead, answer: Answer) -> Json:
    """What only a cascade has to tell."""
    return {
        "request_id": head.request_id,
        "recipe": head.recipe,
        "mode": answer.mode,
        "seed": head.seed,
        "target_passes": answer.target_passes,
        "input": head.recording,
        "gate": _gate(answer.gate),
        "stages": list(_stages(answer)),
        "token_ids": list(answer.token_ids),
        "pieces": list(answer.pieces),
        "spans": token_spans(answer.levels, answer.masks),
        "edges": [edge.to_dict() for edge in answer.edges],
        "rejections": [asdict(rejection) for rejection in answer.rejections],
        "timeline": [
            {"stage": stage, "what": what, "start_ms": round(start, 3), "end_ms": round(end, 3)}
            for stage, what, start, end in answer.timings.spans
        ],
        "notes": [_without_addresses(note) for note in answer.notes],
    }


def token_spans(levels: Sequence[str], masks: Sequence[int], first: int = 0) -> list[Json]:
    """Runs of tokens of one origin: [start, end), who said them first and which later stages chose the same.

    `first` is the number of the first of these tokens in the answer.
    """
    spans: list[Json] = []
    before: int | None = None
    for number, mask in enumerate(masks, first):
        if mask != before:
            accepted = [levels[stage] for stage in acceptors(mask)]
            spans.append({"start": number, "end": number, "by": levels[producer(mask)], "accepted_by": accepted})
        spans[-1]["end"] = number + 1
        before = mask
    return spans


def _last_edge(answer: Answer) -> EdgeCounters | None:
    """The counters of the edge into the target, if anything was drafted for it."""
    edge = next((edge for edge in answer.edges if edge.edge.endswith(f"-{answer.levels[-1]}")), None)
    return edge if edge is not None and edge.num_drafts else None


def _speculative_decoding(edge: EdgeCounters | None) -> Json | None:
    if edge is None:
        return None
    per_pos = edge.num_accepted_tokens_per_pos
    reached = [edge.num_drafts, *per_pos, 0]  # steps that accepted at least 0, 1, 2 ... tokens
    return {
        "mean_acceptance_length": round(edge.mean_acceptance_length, 4),
        "draft_acceptance_rate": round(edge.acceptance_rate, 4),
        "acceptance_histogram": [reached[k] - reached[k + 1] for k in range(len(per_pos) + 1)],
        "num_spec_steps": edge.num_drafts,
        "num_accepted_draft_tokens": edge.num_accepted_tokens,
        "num_draft_tokens": edge.num_draft_tokens,
        "num_spec_tokens": len(per_pos),
    }


def _gate(gate: dict[str, Any] | None) -> Json | None:
    if gate is None:
        return None
    cosines, verdicts = gate["cosines"], set(gate["verdicts"])
    mean = round(sum(cosines) / len(cosines), 4) if cosines else None
    return {"decision": verdicts.pop() if len(verdicts) == 1 else "mixed", "cosine": mean, **gate}


def _stages(answer: Answer) -> Iterator[Json]:
    by_drafter = {edge.edge.split("-")[0]: edge for edge in answer.edges}
    said = answer.produced_by
    for name in answer.levels:
        edge = by_drafter.get(name)
        yield {
            "name": name,
            "produced": said.count(name),
            "drafted": edge.num_draft_tokens if edge else 0,
            "accepted_by_next": edge.num_accepted_tokens if edge else 0,
        }


def _without_addresses(note: str) -> str:
    """A note names the stage that did not take part; why is for the log ("without light: its process ... 10.0.0.7")."""
    return note.partition(":")[0] if note.startswith("without ") else note
