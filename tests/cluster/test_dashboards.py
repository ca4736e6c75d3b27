"""The dashboard asks for what a pipeline counts, all of it and nothing that is not there; its files are well-formed."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml

from cascade_runtime.metrics import EdgeCounters, prometheus_text
from cluster import cli
from cluster.dashboards import ROWS

# what a server in front of the pipeline counts, in vLLM's names
OF_A_SERVER = {
    "vllm:time_to_first_token_seconds_bucket",
    "vllm:inter_token_latency_seconds_bucket",
    "vllm:generation_tokens_total",
}


def counted() -> dict[str, set[str]]:
    """Metric -> labels, as a pipeline of two stages tells them."""
    edge = EdgeCounters("light-heavy")
    edge.observe(3, 2)
    decision = {"min_drafts": 4, "window": 16, "speculate": True, "relay": False, "reason": "best"}
    stage = {
        **dict.fromkeys(("passes", "tokens_fed", "busy_s", "awake_s", "refused_messages", "active_rows"), 1),
        "free_slots": 6,
        "edge": edge.to_dict(),
        "decision": decision | {"tokens_per_s": 210.5, "tokens_per_s_alone": 0.0},
    }
    controller = {"running": 3, "waiting": 1, "cancelled": 2}
    told: dict[str, set[str]] = {}
    for line in prometheus_text({"controller": controller, "heavy": stage}).splitlines():
        if not line.startswith("#"):
            name, _, rest = line.partition("{")
            told[name.split()[0]] = set(re.findall(r'(\w+)="', rest))
    return told


def queries() -> list[tuple[str, str]]:
    return [line for panels in ROWS.values() for panel in panels for line in panel.lines]


def test_every_metric_of_a_pipeline_is_on_the_dashboard_and_no_other() -> None:
    asked = {name for query, _ in queries() for name in re.findall(r"(?:vllm|cascade):\w+", query)}
    assert asked - OF_A_SERVER == counted().keys()


def test_legends_and_sums_name_labels_that_are_there() -> None:
    told = counted() | {name: {"le"} for name in OF_A_SERVER}
    for query, legend in queries():
        labels = set.intersection(*(told[name] for name in re.findall(r"(?:vllm|cascade):\w+", query)))
        by = {label for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(", ") if label}
        assert by <= labels, query
        assert set(re.findall(r"{{(\w+)}}", legend)) <= labels, legend
        assert query.count("(") == query.count(")")


def test_the_command_writes_what_grafana_and_prometheus_read(tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "new" / "folder"
    assert cli.main(["dashboards", "-o", str(folder)]) == cli.OK
    assert capsys.readouterr().out.split() == [str(folder / "cascade-grafana.json"), str(folder / "prometheus.yml")]
    board = json.loads((folder / "cascade-grafana.json").read_text())
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) == len(ROWS) + sum(map(len, ROWS.values()))
    for one, other in combinations([panel["gridPos"] for panel in panels], 2):  # none lies over another
        apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert apart_x or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
    scrape = yaml.safe_load((folder / "prometheus.yml").read_text())
    assert [job["job_name"] for job in scrape["scrape_configs"]] == ["cascade", "ray"]
    (tmp_path / "file").touch()
    assert cli.main(["dashboards", "-o", str(tmp_path / "file")]) == cli.FAILED
