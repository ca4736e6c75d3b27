"""What the core counts of its edges, for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from cascade_runtime.proto import edge_pb2

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_INGEST = ("windows", "empty", "dropped", "joined", "events", "events_dropped")
_MOST = 2**53


class EdgeMetrics:
    """Of all sessions of one server. What edges say of themselves is added up as they say it."""

    def __init__(self) -> None:
        disable_created_metrics()
        self.registry = CollectorRegistry()
        place: dict[str, Any] = {"registry": self.registry}
        self.sessions = Gauge("cascade:edge_sessions", "Sessions that are remembered", **place)
        self.connections = Counter("cascade:edge_connections", "Links that were welcomed", **place)
        self.windows = Counter("cascade:edge_windows", "Windows, by what became of them", ["outcome"], **place)
        self.batches = Counter("cascade:edge_batches", "Batches: new, repeated, refused", ["what"], **place)
        self.payload_bytes = Counter("cascade:edge_payload_bytes", "Of new batches", **place)
        self.draft_messages = Counter(
            "cascade:edge_draft_messages", "Frames of drafts: taken, refused", ["what"], **place
        )
        self.draft_tokens = Counter("cascade:edge_draft_tokens", "Of edges: drafted, accepted", ["what"], **place)
        self.latency = Histogram(
            "cascade:edge_latency_seconds", "From the sensor's time", ["stage"], buckets=_SECONDS, **place
        )
        self._ingest = Counter("cascade:edge_ingest", "What edges say came in and was left out", ["what"], **place)

    def settled(self, outcome: edge_pb2.Outcome, latency_ms: Mapping[str, float]) -> None:
        """A window has its outcome."""
        self.windows.labels(edge_pb2.Outcome.Kind.Name(outcome.kind).lower()).inc()
        for stage, each_ms in latency_ms.items():
            self.latency.labels(stage).observe(max(0.0, each_ms / 1000))

    def ingested(self, before: edge_pb2.Ingest, now: edge_pb2.Ingest) -> None:
        """An edge has said more of what came in."""
        for name in _INGEST:
            more = getattr(now, name) - getattr(before, name)
            if 0 < more < _MOST:
                self._ingest.labels(name).inc(more)
