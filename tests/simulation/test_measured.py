"""Measured runs and recorded traces: what is written is read, and hostile files are refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cascade_runtime.errors import InputError
from cascade_runtime.simulation.measured import MeasuredRun, read_measured_runs
from cascade_runtime.simulation.traces import read_hazards, read_stage_times, read_token_pairs


def a_run() -> dict[str, Any]:
    return {
        "streams": 2,
        "requests": 6,
        "tokens": 20,
        "tokens_per_s": 50.0,
        "stages": [
            {"name": "light", "cost": {"base": 0.005}, "device": "cpu", "capacity": 2},
            {"name": "heavy", "cost": {"base": 0.02, "per_token": 0.001}, "device": "cpu", "capacity": 2},
        ],
        "agreement": [[0.9, 0.8]],
        "policy": {"mode": "fixed", "num_draft_tokens": [4]},
    }


@pytest.mark.parametrize("mode", ["fixed", "lock_step", "adaptive", "alone"])
def test_a_run_survives_its_dictionary_and_is_run_again(mode: str) -> None:
    run = MeasuredRun.from_dict({**a_run(), "policy": {"mode": mode, "num_draft_tokens": [4]}})
    assert MeasuredRun.from_dict(json.loads(json.dumps(run.to_dict()))) == run
    result = run.simulated()
    assert result.tokens == 120
    if mode == "alone":
        assert result.tokens_per_s == pytest.approx(2 / (0.02 + 2 * 0.001))


WRONG: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
    ("streams", lambda run: run.update(streams=0)),
    ("streams", lambda run: run.update(streams=True)),
    ("tokens_per_s", lambda run: run.update(tokens_per_s=float("nan"))),
    ("stages", lambda run: run.update(stages=[])),
    ("stages", lambda run: run.update(stages=run["stages"] * 9)),
    ("agreement", lambda run: run.update(agreement=[])),
    (r"agreement\[0\]\[1\]", lambda run: run.update(agreement=[[0.5, 1.5]])),
    ("links_s", lambda run: run.update(links_s=[-1.0])),
    ("policy.mode", lambda run: run.update(policy={"mode": "magic", "num_draft_tokens": [1]})),
    ("num_draft_tokens", lambda run: run.update(policy={"mode": "fixed"})),
    ("cost", lambda run: run["stages"][0].update(cost={})),
    ("cost.base", lambda run: run["stages"][0].update(cost={"base": "1"})),
    ("got 'colour'", lambda run: run.update(colour=1)),
]


@pytest.mark.parametrize(("complaint", "spoil"), WRONG)
def test_a_run_that_is_not_one_is_refused_by_field(complaint: str, spoil: Callable[[dict[str, Any]], Any]) -> None:
    run = a_run()
    spoil(run)
    with pytest.raises(InputError, match=complaint):
        MeasuredRun.from_dict(run)


def test_a_file_of_runs_is_read_and_others_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "runs.json"
    path.write_text(json.dumps({"runs": [a_run()]}))
    assert [run.streams for run in read_measured_runs(path)] == [2]
    for text in ("", "[]", "{}", '{"runs": 3}', '{"runs": []}', "[" * 100_000):
        path.write_text(text)
        with pytest.raises(InputError):
            read_measured_runs(path)
    with pytest.raises(InputError):
        read_measured_runs(tmp_path / "missing.json")


@pytest.mark.parametrize("read", [read_token_pairs, read_hazards, read_stage_times])
@pytest.mark.parametrize("text", ["", "[]", "{}", "nan", "[" * 100_000, '{"results": [{}]}', '{"by_clip": {"2s": 1}}'])
def test_hostile_traces_are_refused(read: Callable[[Path], object], text: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_text(text)
    with pytest.raises(InputError):
        read(path)


def test_token_pairs_are_read_and_wrong_ids_named(tmp_path: Path) -> None:
    path = tmp_path / "pairs.json"
    answers = [{"vl_tokens": [1, 2], "egpt_tokens": [3]}, {"vl_tokens": [4], "egpt_tokens": [5]}]
    path.write_text(json.dumps({"results": answers}))
    pairs = read_token_pairs(path)
    assert pairs.target == ((1, 2), (4,)) and pairs.drafter == ((3,), (5,))
    for wrong in (-1, 1 << 30, True, "2", 1.5):
        answers[1]["vl_tokens"] = [wrong]  # type: ignore[list-item]
        path.write_text(json.dumps({"results": answers}))
        with pytest.raises(InputError, match=r"results\[1\].vl_tokens"):
            read_token_pairs(path)
