"""What Ray does to a cascade: calls that are lost, a full object store, a node that goes, and noise about all of it.

Each in a process with a Ray of its own, half a minute and more, so that it is no part of `make test`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif("CASCADE_ACCEPTANCE" not in os.environ, reason="heavy: set CASCADE_ACCEPTANCE=1")
ROOT = Path(__file__).resolve().parents[2]
PROGRAM = str(Path(__file__).with_name("ray_faults.py"))
EMULATED = str(ROOT / "benchmarks" / "recipes" / "emulated_5_25_100.toml")


def run(*command: str, **environment: str) -> tuple[dict[str, Any], str]:
    """The JSON of a program's last line, and all of its output."""
    known = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=known, capture_output=True, text=True, timeout=590)
    assert done.stdout.strip(), done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stdout


@pytest.mark.parametrize(
    "failures",
    [
        {"CoreWorkerService.grpc_client.PushTask": {"num_failures": 6, "req_failure_prob": 5, "resp_failure_prob": 0}},
        {"CoreWorkerService.grpc_client.PushTask": {"num_failures": 6, "req_failure_prob": 0, "resp_failure_prob": 5}},
    ],
    ids=["requests", "responses"],
)
def test_lost_calls_change_no_answer_and_are_seen_by_nobody(failures: dict[str, Any]) -> None:
    told, _ = run(PROGRAM, RAY_testing_rpc_failure=json.dumps(failures))
    print(told)
    assert told["identical"] == told["sent"] == 24
    assert not told["changed"] and not told["duplicated"] and not told["errors"]
    assert told["slots"] == [4, 4, 4]


def test_a_full_object_store_refuses_requests_and_no_more() -> None:
    told, _ = run(PROGRAM, "full")
    print(told)
    turns = {turn: told[turn] for turn in ("before", "full", "tight", "after")}
    for turn in turns.values():
        assert not turn["changed"] and not turn["duplicated"] and turn["slots"] == [4, 4, 4]
        assert turn["identical"] + turn["errors"].get("CapacityError", 0) == turn["sent"] == 6 and turn["retryable"]
        assert all("object store is full" in said for said in turn["said"])
    assert turns["before"]["identical"] == turns["after"]["identical"] == 6
    assert not turns["full"]["identical"] and not told["restarts"]


def test_a_lost_node_costs_no_answer() -> None:
    quick = ("--nodes", "1", "--streams", "2", "--max-tokens", "16")
    told = run("-m", "benchmarks.faults", "--only", "nodes", *quick)[0]["nodes"]
    print(told)
    assert told["faults"] == 1 and told["restarts"] >= 1 and told["identical"] == told["sent"] > 0
    assert not any(told[name] for name in ("lost", "duplicated", "changed", "client_visible_errors", "leaked_slots"))


def test_chaos_reports_on_stdout_and_nothing_else_does() -> None:
    faults = ("--minutes", "0.5", "--every", "5", "--faults", "kill,controller")
    told, said = run("-m", "cluster.cli", "bench", "chaos", "--recipe", EMULATED, *faults)
    assert told["passed"] and told["faults"] >= 3 and told["identical"] == told["sent"] > 0
    assert "raylet" not in said and said.splitlines()[0].startswith("requests ")
