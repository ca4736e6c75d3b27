"""A real server for the tests of this folder: `cascade serve light_heavy` in a process of its own, on a free port.

CASCADE_ACCEPTANCE_URL (and _PID) name one that runs already. CASCADE_ACCEPTANCE_VENV (build/acceptance) is the
environment with the tools of requirements.txt, and its node_modules those of package.json: tools of others never share
one with the project.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
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
    """A server, and its process where it was started here. certificate: its own, where it speaks TLS; key: who asks."""

    port: int
    pid: int | None = None
    certificate: Path | None = None
    key: str | None = None

    @property
    def url(self) -> str:
        return f"{'http' if self.certificate is None else 'https'}://127.0.0.1:{self.port}"

    def connection(self, timeout_s: float = 60.0) -> http.client.HTTPConnection:
        if self.certificate is None:
            return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        trusted = ssl.create_default_context(cafile=str(self.certificate))
        return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=timeout_s, context=trusted)

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
        """Status and body; headers by keyword, as in X_Request_Id."""
        with contextlib.closing(self.connection(300.0)) as connection:
            connection.request(method, path, *self._sent(body, headers))
            response = connection.getresponse()
            return response.status, response.read()

    def get(self, path: str) -> tuple[int, bytes]:
        return self.call("GET", path)

    def chat(self, body: dict[str, Any], **headers: str) -> tuple[int, dict[str, Any]]:
        status, told = self.call("POST", "/v1/chat/completions", body, **headers)
        return status, json.loads(told)

    def opened(self, body: dict[str, Any], **headers: str) -> http.client.HTTPConnection:
        """A connection on which a question was sent, and nothing read of its answer."""
        connection = self.connection()
        connection.request("POST", "/v1/chat/completions", *self._sent(body, headers))
        return connection

    def _sent(self, body: Any, headers: dict[str, str]) -> tuple[bytes | None, dict[str, str]]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.key is not None:
            named["Authorization"] = f"Bearer {self.key}"
        if body is None:
            return None, named
        return json.dumps(body).encode(), named | {"Content-Type": "application/json"}

    def metric(self, name: str, **labels: str) -> int:
        """The sum of a metric over all its samples with these labels."""
        text, wanted = self.get("/metrics")[1].decode(), {f'{key}="{value}"' for key, value in labels.items()}
        found = re.findall(rf"^{re.escape(name)}(?:{{([^}}]*)}})? (\S+)$", text, re.MULTILINE)
        return sum(int(float(value)) for told, value in found if wanted <= set(told.split(",")))

    def until(self, true: Callable[[], bool], wait_s: float = 60.0) -> None:
        """Wait for what must become true."""
        end = time.monotonic() + wait_s
        while not true():
            assert time.monotonic() < end, self.get("/metrics")[1].decode()

    def stages(self) -> set[tuple[int, str]]:
        """(pid, name) of every actor of the server; empty where it was not started here."""
        return {(pid, actor_of(name)) for pid, name in descendants(self.pid) if name.startswith("ray::")}


@contextmanager
def known_or_served() -> Iterator[Served]:
    """The server that the environment names, or one started for it."""
    if KNOWN_URL:
        yield Served(int(KNOWN_URL.rpartition(":")[2]), int(os.environ.get("CASCADE_ACCEPTANCE_PID", 0)) or None)
        return
    with served() as server:
        yield server


@contextmanager
def served(*options: str, certificate: Path | None = None, key: str | None = None) -> Iterator[Served]:
    """A server of light_heavy that is ready; options: more of `cascade serve`."""
    port = free_port()
    patience = ("--set", f"deadlines.start_s={_START_S}")  # a busy machine is not a broken one
    command = [sys.executable, "-m", "cluster.cli", "serve", "light_heavy", "--port", str(port), *patience, *options]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True)
    server = Served(port, process.pid, certificate, key)
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


def environment() -> dict[str, str]:
    """Of processes that run this checkout."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def free_port() -> int:
    """One on which nobody listens now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


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


def actor_of(name: str) -> str:
    """Of a process, which Ray also names after the method that it runs now: "ray::Target" of "ray::Target.stats"."""
    return name.partition(".")[0]


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
