"""Clients that thousands use, unchanged, in front of a real server: they all get the same answer, and typed errors.

Each runs in a process of its own with an environment of its own (`served.TOOLS`); what is not installed is skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from acceptance.served import TOOLS, Served, interpreter, messages, write_messages

from cascade_runtime.client import CascadeClient
from cascade_runtime.config import SamplingParams
from cascade_runtime.training.scenes import simulate_scene

CLIENTS = Path(__file__).parent / "clients"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def expected(light_heavy: Served) -> Any:
    """The answer as the project's own client has it."""
    with CascadeClient(light_heavy.url) as client:
        question = messages()[0]["content"][1]["text"]
        return client.generate(simulate_scene(seed=9).events, question, sampling=SamplingParams(max_tokens=60))


def told(command: list[str], **environment: str) -> dict[str, Any]:
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def check_answer(found: dict[str, Any], expected: Any) -> None:
    assert found["text"] == found["streamed"] == expected.text and expected.text
    assert found["finish"] == [expected.finish_reason] * 2
    assert found["usage"] == [len(expected.token_ids)] * 2
    print(f"\n{found['client']}: {found['errors']}")


def check_errors(found: dict[str, Any]) -> None:
    assert found["errors"] == {
        "model": ["NotFoundError", 404, "model_not_found", "model"],
        "messages": ["BadRequestError", 400, "invalid_value", "messages[0].content"],
        "temperature": ["BadRequestError", 400, "invalid_value", "temperature"],
    }


@pytest.mark.parametrize("kind", ["events_url", "video_url"])
def test_openai_s_python_sdk(light_heavy: Served, expected: Any, tmp_path: Path, kind: str) -> None:
    script = str(CLIENTS / "openai_python.py")
    found = told([interpreter("openai"), script, light_heavy.url, str(write_messages(tmp_path, kind))])
    check_answer(found, expected)
    check_errors(found)
    assert found["together"] == [expected.text] * 4
    # whether drafts are worth their time is the policy's to say: a token that none foresaw takes a pass of the target
    assert 0 < len(expected.token_ids) - found["accepted"] <= found["target_passes"] <= len(expected.token_ids)
    assert (found["models"], found["model"]) == (["cascade"], "cascade")


def test_openai_s_sdk_for_node(light_heavy: Served, expected: Any, tmp_path: Path) -> None:
    node, modules = shutil.which("node"), TOOLS / "node_modules"
    if node is None or not (modules / "openai").is_dir():
        pytest.skip("openai for node is not installed: make acceptance")
    script = str(CLIENTS / "openai_node.cjs")
    found = told([node, script, light_heavy.url, str(write_messages(tmp_path))], NODE_PATH=str(modules))
    check_answer(found, expected)
    check_errors(found)
    assert (found["models"], found["model"]) == (["cascade"], "cascade")


def test_litellm(light_heavy: Served, expected: Any, tmp_path: Path) -> None:
    script = str(CLIENTS / "litellm_client.py")
    local = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # it would fetch a list of prices
    found = told([interpreter("litellm"), script, light_heavy.url, str(write_messages(tmp_path, "video_url"))], **local)
    check_answer(found, expected)
    assert found["errors"] == {"model": ["NotFoundError", 404], "messages": ["BadRequestError", 400]}


def test_langchain(light_heavy: Served, expected: Any, tmp_path: Path) -> None:
    script = str(CLIENTS / "langchain_client.py")
    found = told([interpreter("langchain_openai"), script, light_heavy.url, str(write_messages(tmp_path))])
    check_answer(found, expected)
    assert found["errors"] == {
        "model": ["OpenAIModelNotFoundError", 404],
        "messages": ["OpenAIInvalidRequestError", 400],
    }


def test_curl(light_heavy: Served, expected: Any, tmp_path: Path) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("no curl")

    def ask(path: str, body: dict[str, Any] | None = None, *options: str) -> tuple[int, str]:
        sent = tmp_path / "body.json"
        sent.write_text(json.dumps(body))
        data = ["-H", "Content-Type: application/json", "--data-binary", f"@{sent}"] if body is not None else []
        command = [curl, "-sS", "-w", "\n%{http_code}", *data, *options, f"{light_heavy.url}{path}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        text, _, status = done.stdout.rpartition("\n")
        return int(status), text

    body = {"model": "cascade", "messages": messages(), "max_tokens": 60}
    status, text = ask("/v1/chat/completions", body)
    assert status == 200 and json.loads(text)["choices"][0]["message"]["content"] == expected.text
    status, text = ask("/v1/chat/completions", body | {"stream": True}, "-N")
    *events, done = [line.removeprefix("data: ") for line in text.splitlines() if line]
    chunks = [json.loads(event) for event in events]
    assert done == "[DONE]" and len(chunks) > 3
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == expected.text
    status, text = ask("/v1/chat/completions", {"messages": []})
    assert status == 400 and json.loads(text)["error"]["param"] == "messages"
    status, text = ask("/v1/models")
    assert status == 200 and json.loads(text)["data"][0]["id"] == "cascade"
    assert ask("/v1/chat/completions")[0] == 405 and ask("/v1/nothing")[0] == 404
