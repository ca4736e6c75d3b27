"""`write_dashboards`: a Grafana dashboard for what a cascade counts, and a Prometheus configuration that scrapes it.

    cascade-grafana.json    import it in Grafana (Dashboards, New, Import); it asks for a Prometheus data source
    prometheus.yml          a scrape job for /metrics of a server, and one for the metrics of Ray's nodes

The names are those of `cascade_runtime/metrics.py` and, for requests, vLLM's. `ROWS` is the dashboard; the rest puts it
into Grafana's form.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cascade_runtime.errors import CascadeError

_PANELS_ACROSS, _WIDTH, _HEIGHT = 3, 8, 8  # Grafana's grid is 24 wide
_SCRAPE = """# Scrape configuration for a cascade: merge it into your prometheus.yml, or start Prometheus with it.
global:
  scrape_interval: 15s

scrape_configs:
  - job_name: cascade            # `cascade serve`
    metrics_path: /metrics
    static_configs:
      - targets: ["127.0.0.1:8000"]
    # authorization:             # where the server wants API keys
    #   credentials_file: /etc/prometheus/cascade-api-key

  - job_name: ray                # Ray's own metrics, from every node of its cluster
    file_sd_configs:
      - files: ["/tmp/ray/prom_metrics_service_discovery.json"]
"""


@dataclass(frozen=True)
class Panel:
    """One diagram: its title, what it says, Grafana's name of its unit, and the query and legend of each line."""

    title: str
    text: str
    unit: str
    lines: tuple[tuple[str, str], ...]


def _rate(metric: str, *by: str) -> str:
    """Per second, summed over all but the labels `by`."""
    return f"sum by ({', '.join(by)}) (rate({metric}[$__rate_interval]))"


def _quantiles(histogram: str) -> tuple[tuple[str, str], ...]:
    shares = (("0.5", "p50"), ("0.95", "p95"), ("0.99", "p99"))
    return tuple((f"histogram_quantile({share}, {_rate(f'{histogram}_bucket', 'le')})", name) for share, name in shares)


def _edge(count: str, *by: str, of: str = "vllm") -> str:
    return _rate(f"{of}:spec_decode_num_{count}_total", "edge", *by)


ROWS: dict[str, tuple[Panel, ...]] = {
    "Requests": (
        Panel(
            "Requests inside",
            "Running in the pipeline, and waiting for a slot.",
            "short",
            (("sum(vllm:num_requests_running)", "running"), ("sum(vllm:num_requests_waiting)", "waiting")),
        ),
        Panel("Time to first token", "From a request's arrival.", "s", _quantiles("vllm:time_to_first_token_seconds")),
        Panel(
            "Time per token", "After the first, mean of an answer.", "s", _quantiles("vllm:inter_token_latency_seconds")
        ),
        Panel("Tokens of answers", "Per second.", "short", ((_rate("vllm:generation_tokens_total"), "tokens/s"),)),
        Panel("Cancelled", "Per second.", "short", ((_rate("cascade:num_requests_cancelled_total"), "cancelled"),)),
    ),
    "Drafts": (
        Panel(
            "alpha: accepted of drafted tokens",
            "By edge, a pair of stages of which the first drafts for the second.",
            "percentunit",
            ((f"{_edge('accepted_tokens')} / {_edge('draft_tokens')}", "{{edge}}"),),
        ),
        Panel(
            "tau: tokens won per verified block",
            "Accepted ones, and the verifier's own.",
            "short",
            (
                (
                    f"({_edge('accepted_tokens')} + {_edge('bonus_tokens', of='cascade')}) / {_edge('drafts')}",
                    "{{edge}}",
                ),
            ),
        ),
        Panel(
            "Hazard by position",
            "How often a draft is refused where all before it in its block were accepted.",
            "percentunit",
            (
                (
                    f"1 - {_edge('accepted_tokens_per_pos', 'position')} / "
                    f"{_edge('tested_tokens_per_pos', 'position', of='cascade')}",
                    "{{edge}} {{position}}",
                ),
            ),
        ),
        Panel(
            "Drafts by position",
            "Draft tokens per second at each position: how long blocks are.",
            "short",
            ((_edge("draft_tokens_per_pos", "position", of="cascade"), "{{edge}} {{position}}"),),
        ),
    ),
    "Stages": (
        Panel(
            "Busy",
            "Share of the time in passes. The bottleneck is the one near 100 %.",
            "percentunit",
            ((_rate("cascade:stage_busy_seconds_total", "stage"), "{{stage}}"),),
        ),
        Panel(
            "Coordination",
            "Awake outside passes, over the time in passes.",
            "percentunit",
            (
                (
                    f"{_rate('cascade:stage_awake_seconds_total', 'stage')} / "
                    f"{_rate('cascade:stage_busy_seconds_total', 'stage')} - 1",
                    "{{stage}}",
                ),
            ),
        ),
        Panel(
            "Tokens a pass",
            "Positions fed to the model in each of its passes.",
            "short",
            (
                (
                    f"{_rate('cascade:stage_tokens_fed_total', 'stage')} / "
                    f"{_rate('cascade:stage_passes_total', 'stage')}",
                    "{{stage}}",
                ),
            ),
        ),
        Panel(
            "Slots",
            "Rows that are active, and slots that are free.",
            "short",
            (("cascade:stage_active_rows", "{{stage}} active"), ("cascade:stage_free_slots", "{{stage}} free")),
        ),
        Panel(
            "Refused messages",
            "Per second; stale after a restart, else a sign of trouble.",
            "short",
            ((_rate("cascade:stage_refused_messages_total", "stage"), "{{stage}}"),),
        ),
    ),
    "Policy": (
        Panel(
            "Drafts a row waits for, and the window",
            "What each stage has decided.",
            "short",
            (("cascade:policy_min_drafts", "{{stage}} waits for"), ("cascade:policy_window", "{{stage}} window")),
        ),
        Panel(
            "Speculating, relaying",
            "1 where the stage makes use of drafts; where it hands them on unverified.",
            "short",
            (("cascade:policy_speculate", "{{stage}} speculates"), ("cascade:policy_relay", "{{stage}} relays")),
        ),
        Panel(
            "Tokens per second it expects",
            "With drafts, and without any.",
            "short",
            (("cascade:policy_tokens_per_s", "{{stage}}"), ("cascade:policy_tokens_per_s_alone", "{{stage}} alone")),
        ),
        Panel(
            "Why", "The reason of each stage's decision.", "short", (("cascade:policy_info", "{{stage}}: {{reason}}"),)
        ),
    ),
}


def grafana() -> dict[str, Any]:
    """The dashboard in Grafana's JSON."""
    source = {"type": "prometheus", "uid": "${source}"}
    panels: list[dict[str, Any]] = []
    y = 0
    for row, members in ROWS.items():
        panels.append({"type": "row", "title": row, "collapsed": False, "gridPos": _at(0, y, 24, 1)})
        y += 1
        for number, panel in enumerate(members):
            down, across = divmod(number, _PANELS_ACROSS)
            targets = [
                {"refId": chr(ord("A") + line), "expr": query, "legendFormat": legend, "datasource": source}
                for line, (query, legend) in enumerate(panel.lines)
            ]
            panels.append(
                {
                    "type": "timeseries",
                    "title": panel.title,
                    "description": panel.text,
                    "datasource": source,
                    "targets": targets,
                    "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
                    "gridPos": _at(_WIDTH * across, y + _HEIGHT * down, _WIDTH, _HEIGHT),
                }
            )
        y += _HEIGHT * (-(-len(members) // _PANELS_ACROSS))
    for number, panel in enumerate(panels, start=1):
        panel["id"] = number
    return {
        "title": "Cascade",
        "uid": "cascade-runtime",
        "tags": ["cascade"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "15s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {
            "list": [{"name": "source", "label": "Data source", "type": "datasource", "query": "prometheus"}]
        },
        "panels": panels,
    }


def write_dashboards(folder: Path) -> list[Path]:
    """Write both files into a folder, which is made; returns their paths. Raises `CascadeError` where it cannot."""
    files = {
        folder / "cascade-grafana.json": json.dumps(grafana(), indent=1) + "\n",
        folder / "prometheus.yml": _SCRAPE,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CascadeError(f"{folder}: {error.strerror or error}") from error
    return list(files)


def _at(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}
