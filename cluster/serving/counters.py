"""What a server counts, in vLLM's names, and all of /metrics: its own, then the pipeline's.

Every `vllm:` sample has vLLM's label `model_name`, by which dashboards and routers made for vLLM find it. Where vLLM
counts blocks of its KV cache there are slots here, all of one size: `vllm:kv_cache_usage_perc` is the target's share of
slots that are taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest

from cascade_runtime.api import Answer
from cascade_runtime.config import stage_of
from cascade_runtime.errors import CascadeError
from cascade_runtime.metrics import prometheus_text
from cluster.serving.merged_metrics import labelled

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)


class ServerCounters:
    """Requests and answers of one replica. model: what it is called, in the label `model_name`."""

    def __init__(self, model: str) -> None:
        self._model = model
        disable_created_metrics()  # a second series per counter that nobody asked for
        self._registry = CollectorRegistry()
        place: dict[str, Any] = {"registry": self._registry}
        self._responses = Counter("cascade:http_responses", "HTTP responses", ["code"], **place)
        self._calls = Counter("cascade:grpc_calls", "gRPC calls that have ended", ["code"], **place)
        self._success = Counter("vllm:request_success", "Answers", ["finished_reason"], **place)
        self._failures = Counter("cascade:request_failures", "Requests without an answer", ["reason"], **place)
        self._prompt = Counter("vllm:prompt_tokens", "Positions of prompts", **place)
        self._generation = Counter("vllm:generation_tokens", "Tokens of answers", **place)
        self._ttft = Histogram("vllm:time_to_first_token_seconds", "First token", buckets=_SECONDS, **place)
        self._e2e = Histogram("vllm:e2e_request_latency_seconds", "Whole answer", buckets=_SECONDS, **place)
        self._itl = Histogram("vllm:inter_token_latency_seconds", "Mean of one answer", buckets=_TOKEN_SECONDS, **place)
        self._queued = Histogram("vllm:request_queue_time_seconds", "Before its first stage", buckets=_SECONDS, **place)
        self._prefill = Histogram("vllm:request_prefill_time_seconds", "To the first token", buckets=_SECONDS, **place)
        self._decode = Histogram("vllm:request_decode_time_seconds", "From it to the last", buckets=_SECONDS, **place)
        self._prompts = Histogram("vllm:request_prompt_tokens", "Of one request", buckets=_TOKENS, **place)
        self._answers = Histogram("vllm:request_generation_tokens", "Of one answer", buckets=_TOKENS, **place)
        self._verdicts = Counter("cascade:encoder_decision", "Frames the gate decided on", ["decision"], **place)

    def responded(self, code: int) -> None:
        """One HTTP response has begun."""
        self._responses.labels(str(code)).inc()

    def called(self, code: str) -> None:
        """One gRPC call has ended with this status."""
        self._calls.labels(code).inc()

    def ended(self, outcome: Answer | CascadeError) -> None:
        """One request has ended."""
        if isinstance(outcome, CascadeError):
            self._failures.labels(type(outcome).__name__).inc()
            return
        timings, count = outcome.timings, len(outcome.token_ids)
        self._success.labels(outcome.finish_reason).inc()
        self._prompt.inc(outcome.prompt_tokens)
        self._generation.inc(count)
        self._prompts.observe(outcome.prompt_tokens)
        self._answers.observe(count)
        self._ttft.observe(timings.ttft_ms / 1000)
        self._e2e.observe(timings.total_ms / 1000)
        queued_ms, decode_ms = timings.queue_ms or 0.0, max(0.0, timings.total_ms - timings.ttft_ms)
        self._queued.observe(queued_ms / 1000)
        self._prefill.observe(max(0.0, timings.ttft_ms - queued_ms) / 1000)
        self._decode.observe(decode_ms / 1000)
        if count > 1:
            self._itl.observe(decode_ms / 1000 / (count - 1))
        verdicts: Any = (outcome.gate or {}).get("verdicts", ())
        for verdict in verdicts:
            self._verdicts.labels(verdict).inc()

    def text(self, stats: Mapping[str, Mapping[str, Any]]) -> str:
        """Prometheus' text format 0.0.4. stats: as `Pipeline.stats` gives them; of a stage with a problem only that."""
        alive = {name: counted for name, counted in stats.items() if "problem" not in counted}
        up = [f'cascade:stage_up{{stage="{name}"}} {int(name in alive)}' for name in stats]
        lines = ["# TYPE cascade:stage_up gauge", *up, *_kv_usage(stats)]
        own = generate_latest(self._registry).decode()
        told = own + "\n".join(lines) + "\n" + prometheus_text(alive)
        return "\n".join(map(self._named, told.split("\n")))

    def _named(self, line: str) -> str:
        return labelled(line, "model_name", self._model) if line.startswith("vllm:") else line


def _kv_usage(stats: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The share of its slots that are taken, where the target, or a replica of it, tells of them."""
    name, target = "vllm:kv_cache_usage_perc", [stage_of(stage) for stage in stats][-1:]
    told = [each for stage, each in stats.items() if [stage_of(stage)] == target and "free_slots" in each]
    rows, free = sum(each["active_rows"] for each in told), sum(each["free_slots"] for each in told)
    return [f"# TYPE {name} gauge", f"{name} {rows / (rows + free):.15g}"] if told else []
