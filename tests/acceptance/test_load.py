"""Load by tools of others. Nothing is asserted of times: they are printed; `pytest -s` shows them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from acceptance.served import ROOT, Served, messages, tool, write_messages

LOCUSTFILE = Path(__file__).parent / "load" / "locustfile.py"
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("users", [1, 8])
def test_locust_finds_no_error_and_one_answer(light_heavy: Served, tmp_path: Path, users: int) -> None:
    command = [
        *(tool("locust"), "-f", str(LOCUSTFILE), "--headless", "-u", str(users), "-r", str(users), "-t", "30s"),
        *("--host", light_heavy.url, "--json"),
    ]
    environment = {**os.environ, "MESSAGES": str(write_messages(tmp_path))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = {f"{row['method']} {row['name']}": row for row in json.loads(done.stdout[done.stdout.index("[") :])}
    assert {"POST chat", "POST stream", "TTFT stream"} <= rows.keys()
    for name, row in rows.items():
        assert row["num_requests"] > 0 and row["num_failures"] == 0, row
        times = sorted((float(ms), count) for ms, count in row["response_times"].items() for _ in range(count))
        median = times[len(times) // 2][0]
        print(f"\nlocust, {users} users: {name}: {row['num_requests']} requests, median {median:.0f} ms")


def test_guidellm_measures_it(light_heavy: Served, tmp_path: Path) -> None:
    recording = messages("video_url")[0]["content"]
    row = {"prompt": recording[1]["text"], "video": {"type": "video_url", "video": recording[0]["video_url"]["url"]}}
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for _ in range(64)))
    family = ROOT / "cascade_runtime" / "family" / "heavy"
    command = [
        *(tool("guidellm"), "run", "--disable-console-interactive"),
        *("--backend", f"kind=openai_http,target={light_heavy.url},model=cascade"),
        *("--profile", "kind=concurrent,streams=4", "--constraint", "kind=max_requests,count=32"),
        *(
            "--data",
            f"kind=json_file,path={tmp_path}/data.jsonl",
            "--tokenizer",
            f"kind=huggingface_auto,model={family}",
        ),
        *("--output", f"kind=json,path={tmp_path}/report.json"),
    ]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **offline}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    metrics = json.loads((tmp_path / "report.json").read_text())["benchmarks"][0]["metrics"]
    totals = metrics["request_totals"]
    assert (totals["successful"], totals["errored"], totals["incomplete"]) == (32, 0, 0)
    print("\nguidellm, 4 streams, 32 requests:", end="")
    for name in ("time_to_first_token_ms", "inter_token_latency_ms", "output_tokens_per_second"):
        print(f" {name} {metrics[name]['successful']['mean']:.1f}", end="")
