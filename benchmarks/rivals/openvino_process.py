"""OpenVINO GenAI as a contestant: a process of its own, since it needs other versions of the same libraries."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.rivals.prompts import Task, tokens_of
from cascade_runtime.config import SamplingParams

SERVER = Path(__file__).with_name("openvino_server.py")


class OpenVinoProcess:
    """The server, started. Raises `RuntimeError` with what it said where it cannot run."""

    def __init__(self, python: Path, folder: Path, end: int) -> None:
        self.end = end
        self._process = subprocess.Popen(
            [str(python), str(SERVER), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=sys.stderr,
            text=True,
        )
        self.versions = self._read()

    def ask(self, **fields: Any) -> dict[str, Any]:
        """One run."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"end": self.end, "assistant": 0, **fields}) + "\n")
        self._process.stdin.flush()
        answer = self._read()
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def close(self) -> None:
        """End it."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(30)

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the OpenVINO process ended with code {self._process.wait(30)}")
        return json.loads(line)


class OpenVino:
    """One of its modes: "plain", "batched", or "draft" with so many assistant tokens."""

    def __init__(self, process: OpenVinoProcess, mode: str, assistant: int = 0) -> None:
        self.process, self.mode, self.assistant = process, mode, assistant

    def __call__(self, tasks: Sequence[Task], sampling: SamplingParams) -> tuple[float, list[list[int]]]:
        """Seconds, and the answers' token ids."""
        answer = self.process.ask(
            mode=self.mode,
            prompts=[task.ids for task in tasks],
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            assistant=self.assistant,
        )
        return answer["seconds"], [tokens_of(row, self.process.end) for row in answer["tokens"]]
