"""A rival in a process of its own, since it needs other versions of the same libraries: a server that reads one JSON
line per run and answers with one (`openvino_server.py`, `vllm_server.py`).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.rivals.prompts import Task, tokens_of
from cascade_runtime.config import SamplingParams


class Server:
    """A server, started; `versions` is its first line. Raises `RuntimeError` where it cannot run."""

    def __init__(self, python: Path, script: str, folder: Path, end: int, *arguments: str) -> None:
        self.end, self._script = end, script
        self._process = subprocess.Popen(
            [str(python), str(Path(__file__).with_name(script)), str(folder), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=sys.stderr,
            text=True,
        )
        self.versions: dict[str, str] = self._read()

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
            raise RuntimeError(f"{self._script} ended with code {self._process.wait(30)}")
        return json.loads(line)


class Served:
    """One of a server's modes: "plain" and "draft" take the questions one after the other, "batched" together."""

    def __init__(self, server: Server, mode: str, assistant: int = 0) -> None:
        self.server, self.mode, self.assistant = server, mode, assistant

    def __call__(self, tasks: Sequence[Task], sampling: SamplingParams) -> tuple[float, list[list[int]]]:
        """Seconds, and the answers' token ids."""
        answer = self.server.ask(
            mode=self.mode,
            prompts=[task.ids for task in tasks],
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            assistant=self.assistant,
        )
        return answer["seconds"], [tokens_of(row, self.server.end) for row in answer["tokens"]]
