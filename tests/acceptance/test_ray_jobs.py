"""What the README hands to `ray job submit`, on a cluster that `ray start` has started: the benchmark and a batch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from acceptance.ray_head import RayHead

from cascade_runtime.client import CascadeClient
from cascade_runtime.events import write_events
from cascade_runtime.training.scenes import simulate_scene

pytestmark = pytest.mark.skipif("CASCADE_ACCEPTANCE" not in os.environ, reason="heavy: set CASCADE_ACCEPTANCE=1")
QUESTION = "What are the key elements in this scene?"


def submitted(head: RayHead, *command: str) -> str:
    """What a job printed, once it has succeeded."""
    return head.run("ray", "job", "submit", "--address", head.dashboard, "--working-dir", ".", "--", *command)


def last_json(text: str) -> dict[str, Any]:
    return json.loads([line for line in text.splitlines() if line.startswith("{")][-1])


def test_the_benchmark_is_a_job_and_ends_in_a_line_of_json(head: RayHead, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    options = ("--recipe", "light_heavy", "--streams", "2", "--requests", "1", "--rounds", "1", "--html", str(page))
    printed = submitted(head, "python", "-m", "benchmarks.throughput", *options)
    told = last_json(printed)
    assert told["benchmark"] == "throughput" and told["identical"] and told["tps"] > 0 and told["speedup"] > 0
    for side in (told["alone"], told["cascade"]):
        assert side["ttft_ms_p50"] > 0 and side["tpot_ms_p50"] > 0 and {"light", "heavy"} <= set(side["busy_share"])
        assert "latency_hidden" in side
    edge = told["edges"]["light-heavy"]
    assert 0 < edge["alpha"] <= 1 <= edge["tau"] and edge["hazard"]
    assert all(held["peak"] > held["weights"] > 0 for held in told["memory"].values())
    assert "x the target alone; the same token ids in every round" in printed
    assert page.read_text().startswith("<!doctype html>") and "<svg" in page.read_text()


def test_a_batch_is_a_job_that_answers_each_row_once(head: RayHead, tmp_path: Path) -> None:
    scene = simulate_scene(seed=9).events
    write_events(tmp_path / "drive.npz", scene)
    with CascadeClient(recipe="light_heavy") as client:
        text = client.generate(scene, QUESTION, max_tokens=24).text
    rows = [{"id": f"q{n}", "events": "drive.npz", "question": QUESTION, "answer": text} for n in range(4)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = ("-i", str(tmp_path / "q.jsonl"), "-o", str(tmp_path / "a.jsonl"))
    options = ("--target", "ray", "--recipe", "light_heavy", "--max-tokens", "24", "--json")
    for _ in range(2):  # the second time nothing is left to do
        told = last_json(submitted(head, "python", "-m", "cluster.cli", "batch", *files, *options))
        answers = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
        assert [answer["id"] for answer in answers] == [row["id"] for row in rows]
        assert {answer["text"] for answer in answers} == {text}
        assert told["rows"] == 4 and not told["failed"]
