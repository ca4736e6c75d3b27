"""What a server counts, in vLLM's names, and all of /metrics: its own, then the pipeline's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest

from cascade_runtime.api import Answer
from cascade_runtime.errors import CascadeError
from cascade_runtime.metrics import prometheus_text

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


class ServerCounters:
    """Requests and answers of one replica."""

    def __init__(self) -> None:
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
        self._ttft.observe(timings.ttft_ms / 1000)
        self._e2e.observe(timings.total_ms / 1000)
        if count > 1:
            self._itl.observe(max(0.0, timings.total_ms - timings.ttft_ms) / 1000 / (count - 1))
        verdicts: Any = (outcome.gate or {}).get("verdicts", ())
        for verdict in verdicts:
            self._verdicts.labels(verdict).inc()

    def text(self, stats: Mapping[str, Mapping[str, Any]]) -> str:
        """Prometheus' text format 0.0.4. stats: as `Pipeline.stats` gives them; of a stage with a problem only that."""
        alive = {name: counted for name, counted in stats.items() if "problem" not in counted}
        up = [f'cascade:stage_up{{stage="{name}"}} {int(name in alive)}' for name in stats]
        own = generate_latest(self._registry).decode()
        return own + "\n".join(["# TYPE cascade:stage_up gauge", *up]) + "\n" + prometheus_text(alive)
