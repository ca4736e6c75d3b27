"""`cascade trace` on real Ray actors: the files, the figures, and what is left out of them."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from emulated import emulated_table

from cascade_runtime.config import recipe_from_dict
from cluster.traced_run import run_trace

pytestmark = pytest.mark.ray
STAGES = ["encoder", "adapter", "level0", "level1", "target"]


def test_a_run_is_a_perfetto_trace_a_picture_and_counters(ray_cluster: None, tmp_path: Path) -> None:
    table = emulated_table(["level0", "level1"], {"agreement": [0.7, 0.8]})
    table["stages"]["target"]["profile"]["base_ms"] = 10.0  # drafts are worth sending
    recipe = recipe_from_dict({**table, "deadlines": {"start_s": 300.0}, "policy": {"mode": "fixed"}})
    told, drawn, counted, out = tmp_path / "t.json", tmp_path / "t.svg", tmp_path / "m.prom", io.StringIO()
    assert run_trace(recipe, [told, drawn], counted, streams=2, requests=2, seed=5, out=out) == 0

    events = json.loads(told.read_text())["traceEvents"]
    assert [e["args"]["name"] for e in events if e["name"] == "process_name"] == STAGES
    starts = {e["id"]: e["ts"] for e in events if e["ph"] == "s"}
    ends = {e["id"]: e["ts"] for e in events if e["ph"] == "f"}
    assert starts.keys() == ends.keys() and len(starts) > 10
    assert all(starts[number] <= ends[number] for number in starts)
    encoded = {e["args"]["requests"][0]["request"] for e in events if e["name"] == "encode"}
    assert len(encoded) == 4  # two questions of two streams; the two that came before are not there

    lanes = [g for g in ElementTree.parse(drawn).iter("{http://www.w3.org/2000/svg}g") if "data-stage" in g.attrib]
    assert [g.attrib["data-stage"] for g in lanes] == 2 * STAGES

    text = counted.read_text()
    assert int(re.search(r'vllm:spec_decode_num_draft_tokens_total{edge="level0-level1"} (\d+)', text)[1]) > 0  # type: ignore[index]
    assert 'cascade:policy_window{stage="target"}' in text

    summary = out.getvalue()
    assert [line.split()[0] for line in summary.splitlines()[1:6]] == STAGES
    assert "4 answers" in summary and "latency hidden" in summary
