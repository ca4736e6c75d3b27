"""Thousands of requests that schemathesis makes up from /openapi.json: no server error, and no stage dies.

Valid ones, invalid ones in every place, wrong methods and headers. 503 and 504 are answers of a full server and of a
deadline; any other 5xx, a status, type or body that the document does not have, or a refusal of what it allows, fails.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from acceptance.served import Served, tool

HERE = Path(__file__).parent / "openapi"
EXAMPLES, LEAST = 200, 5000
pytestmark = pytest.mark.slow


def test_no_generated_request_is_a_server_error_or_ends_a_stage(light_heavy: Served, tmp_path: Path) -> None:
    st = tool("st")
    before = light_heavy.stages()
    command = [
        *(st, "--config-file", str(HERE / "schemathesis.toml"), "run", f"{light_heavy.url}/openapi.json"),
        *("--max-examples", str(EXAMPLES), "--phases", "examples,coverage,fuzzing,stateful", "--no-shrink"),
        *("--continue-on-failure", "--seed", "1"),
        *("--report", "junit", "--report-junit-path", str(tmp_path / "junit.xml")),
    ]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(HERE), "NO_COLOR": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=3000, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    (cases,) = re.findall(r"(\d+) generated", done.stdout)
    assert int(cases) >= LEAST
    assert light_heavy.stages() == before
    status, health = light_heavy.get("/health/deep")
    assert status == 200, health
    text = light_heavy.get("/metrics")[1].decode()
    codes = {code: int(float(n)) for code, n in re.findall(r'http_responses_total\{code="(\d+)"\} (\S+)', text)}
    assert not [code for code in codes if code >= "500" and code not in ("503", "504")], codes
    assert codes["200"] > 300, codes
    print(f"\n{cases} requests: {json.dumps(codes)}")
