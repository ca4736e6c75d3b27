"""`cascade edge-server --target ray` as somebody would start it, and `cascade edge` with every cut against it.

The stages are processes of a Ray of the server's own; one is killed while windows are answered. About two minutes:
CASCADE_ACCEPTANCE=1 python -m pytest tests/acceptance/test_edge_server_on_ray.py
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from acceptance.served import ROOT, descendants
from acceptance.turns import Turns

from cascade_runtime.api import Answer, GenerateRequest
from cascade_runtime.config import SamplingParams, load_recipe
from cascade_runtime.edge.ingest import windows_of
from cascade_runtime.engine import Engine
from cascade_runtime.events import Events, read_events, write_events
from cascade_runtime.training.scenes import simulate_scene

pytestmark = pytest.mark.skipif("CASCADE_ACCEPTANCE" not in os.environ, reason="heavy: set CASCADE_ACCEPTANCE=1")
QUESTION = "What are the key elements in this scene?"
TOKENS = 24
WINDOW_MS = 10
_READY_S, _STOP_S, _ANSWERS_S = 600.0, 90.0, 300.0


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recording") / "scene.npz"
    write_events(path, simulate_scene(seed=9).events)
    return path


@pytest.fixture(scope="module")
def wanted(recording: Path) -> list[tuple[int, list[int]]]:
    """What the target alone says of every window, in this process."""
    events: Events = read_events(recording)
    sampling = SamplingParams(max_tokens=TOKENS)
    windows = [each for each in windows_of(events, 1000 * WINDOW_MS) if len(each.events)]
    requests = [
        GenerateRequest(events=each.events, question=QUESTION, sampling=sampling, speculate=False) for each in windows
    ]
    answers = Engine.load(load_recipe("light_heavy")).generate(requests)
    assert len(answers) > 4
    assert all(isinstance(answer, Answer) for answer in answers)
    numbers = [each.number for each in windows]
    return [(number, list(answer.token_ids)) for number, answer in zip(numbers, answers, strict=True)]  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def server(turns: Turns) -> Iterator[tuple[int, int]]:
    """Its port and its process."""
    turns.end()
    patient = ["--set", f"deadlines.start_s={_READY_S}"]
    command = [sys.executable, "-m", "cluster.cli", "edge-server", "light_heavy", "--target", "ray", "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, *patient], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    stopwatch = threading.Timer(_READY_S, process.kill)
    stopwatch.start()
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if found := re.match(r"127\.0\.0\.1:(\d+), no TLS", line):
            break
    else:
        pytest.fail("".join(said))
    stopwatch.cancel()
    yield int(found[1]), process.pid
    stages = [pid for pid, name in descendants(process.pid) if name.startswith("ray::")]
    assert stages
    process.send_signal(signal.SIGTERM)
    assert process.wait(_STOP_S) == 0
    assert not [pid for pid in stages if Path(f"/proc/{pid}").exists()]


def edge(recording: Path, port: int, cut: str) -> subprocess.Popen[str]:
    options = ["--server", f"127.0.0.1:{port}", "-q", QUESTION, "--cut", cut, "--keep", "all", "--speed", "inf"]
    options += [
        "--max-tokens",
        str(TOKENS),
        "--window-ms",
        str(WINDOW_MS),
        "--json",
        *(["--recipe", "light_heavy"] if cut == "features" else []),
    ]
    command = [sys.executable, "-m", "cluster.cli", "edge", str(recording), *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def answers(lines: list[dict[str, Any]]) -> list[tuple[int, list[int]]]:
    assert {line["is"] for line in lines} == {"answered"}
    return [(line["window"], line["token_ids"]) for line in lines]


@pytest.mark.parametrize("cut", ["raw", "frames", "features"])
def test_every_cut_is_answered_as_in_one_process(
    wanted: list[tuple[int, list[int]]], server: tuple[int, int], recording: Path, cut: str
) -> None:
    out, _ = edge(recording, server[0], cut).communicate(timeout=_ANSWERS_S)
    *lines, last = [json.loads(line) for line in out.splitlines()]
    assert answers(lines) == wanted
    assert last["dropped"] == 0 and last["links"] == 1


def test_a_killed_target_costs_no_window(
    wanted: list[tuple[int, list[int]]], server: tuple[int, int], recording: Path
) -> None:
    asking = edge(recording, server[0], "raw")
    assert asking.stdout is not None
    lines = [json.loads(asking.stdout.readline())]
    (target,) = (pid for pid, name in descendants(server[1]) if name.startswith("ray::Target"))
    os.kill(target, signal.SIGKILL)
    out, _ = asking.communicate(timeout=_ANSWERS_S)
    lines += [json.loads(line) for line in out.splitlines()]
    assert answers(lines[:-1]) == wanted
    assert target not in [pid for pid, _ in descendants(server[1])]
