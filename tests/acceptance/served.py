"""A real server for the tests of this folder: `cascade serve light_heavy` in a process of its own, on a free port.

CASCADE_ACCEPTANCE_URL (and _PID) name one that runs already. CASCADE_ACCEPTANCE_VENV (build/acceptance) is the
environment with the tools of requirements.txt, and its node_modules those of package.json: tools of others never share
one with the project.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cascade_runtime.training.scenes import simulate_scene

ROOT = Path(__file__).resolve().parents[2]
TOOLS = Path(os.environ.get("CASCADE_ACCEPTANCE_VENV", ROOT / "build" / "acceptance"))
KNOWN_URL = os.environ.get("CASCADE_ACCEPTANCE_URL")
_START_S, _STOP_S = 600.0, 90.0


@dataclass(frozen=True)
class Served:
    """A server, and its process where it was started here."""

    port: int
    pid: int | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", path)
        response = connection.getresponse()
        try:
            return response.status, response.read()
        finally:
            connection.close()

    def stages(self) -> set[tuple[int, str]]:
        """(pid, name) of every actor of the server; empty where it was not started here."""
        return {(pid, name) for pid, name in descendants(self.pid) if name.startswith("ray::")} if self.pid else set()


@contextmanager
def served(recipe: str = "light_heavy") -> Iterator[Served]:
    """A server that is ready."""
    if KNOWN_URL:
        yield Served(int(KNOWN_URL.rpartition(":")[2]), int(os.environ.get("CASCADE_ACCEPTANCE_PID", 0)) or None)
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "cluster.cli", "serve", recipe, "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    server = Served(port, process.pid)
    try:
        _await_ready(server, process)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def tool(name: str) -> str:
    """The path of an installed tool; the test is skipped where it is not."""
    for folder in (TOOLS / "bin", Path(sys.executable).parent):
        if (folder / name).is_file():
            return str(folder / name)
    pytest.skip(f"{name} is not installed: make acceptance")


def interpreter(package: str) -> str:
    """The Python that has this package; the test is skipped where it is not installed."""
    if not any(TOOLS.glob(f"lib/python*/site-packages/{package}")):
        pytest.skip(f"{package} is not installed: make acceptance")
    return str(TOOLS / "bin" / "python")


def messages(kind: str = "events_url") -> list[dict[str, Any]]:
    """A question about a simulated scene, as OpenAI's messages."""
    recording = base64.b64encode(simulate_scene(seed=9).events.to_ipc_bytes("zstd")).decode()
    source = {"type": kind, kind: {"url": f"data:application/vnd.apache.arrow.stream;base64,{recording}"}}
    text = {"type": "text", "text": "What are the key elements in this scene?"}
    return [{"role": "user", "content": [source, text]}]


def write_messages(folder: Path, kind: str = "events_url") -> Path:
    """The same in a file, for a client's script."""
    path = folder / f"{kind}.json"
    path.write_text(json.dumps(messages(kind)))
    return path


def _await_ready(server: Served, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + _START_S
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended: {process.stderr.read() if process.stderr else ''}")
        try:
            if server.get("/ready")[0] == 200:
                return
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(0.5)
    raise RuntimeError("the server is not ready")


def descendants(pid: int | None) -> Iterator[tuple[int, str]]:
    """(pid, name) of every process below one."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            parents.setdefault(parent, []).append(int(entry.name))
    waiting = [pid] if pid else []
    while waiting:
        for child in parents.get(waiting.pop(), []):
            waiting.append(child)
            try:
                name = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")[0].decode()
            except OSError:
                continue
            yield child, name
