"""A Ray cluster of one node as an operator starts it, `ray start --head`, with a token, on ports of its own."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from acceptance.served import ROOT, environment, free_port

BIN = Path(sys.executable).parent
_START_S, _STOP_S, _COMMAND_S = 120.0, 60.0, 300.0


@dataclass(frozen=True)
class RayHead:
    """Where it is: `address` for drivers, `dashboard` for `serve deploy` and `ray job`; env: of who may speak to it."""

    address: str
    dashboard: str
    env: dict[str, str]

    def run(self, program: str, *arguments: str, timeout_s: float = _COMMAND_S) -> str:
        """A program of the environment (`serve`, `ray`), to its end. What it printed."""
        command = [str(BIN / program), *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env=self.env, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    @contextmanager
    def running(self, program: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """A program that runs until it is interrupted, as by Ctrl-C."""
        process = subprocess.Popen([str(BIN / program), *arguments], cwd=ROOT, env=self.env, preexec_fn=_heed_ctrl_c)
        try:
            yield process
        finally:
            _end(process, signal.SIGINT)


@contextmanager
def ray_head(cpus: int) -> Iterator[RayHead]:
    """The cluster, from when its dashboard answers."""
    port, dashboard = free_port(), free_port()
    folder = Path(
        tempfile.mkdtemp(prefix="rh")
    )  # short: sockets lie in it, and a path of theirs may have 107 characters
    env = environment() | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "cluster.serving.proxy_limits.proxy_limits",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }
    env.pop("RAY_ADDRESS", None)
    ports = {
        "port": port,
        "dashboard-port": dashboard,
        "dashboard-agent-listen-port": free_port(),
        "ray-client-server-port": free_port(),
    }
    command = [
        *(str(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats", "--node-ip-address", "127.0.0.1"),
        *(f"--{name}={number}" for name, number in ports.items()),
        *("--num-cpus", str(cpus), "--object-store-memory", "300000000", "--temp-dir", str(folder)),
        *("--system-config", json.dumps({"worker_niceness": 0})),
    ]
    with (folder / "ray_start.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + _START_S
        while not _answers(dashboard):
            ended = process.poll() is not None or time.monotonic() > end
            assert not ended, (folder / "ray_start.log").read_text()[-3000:]
            time.sleep(0.5)
        yield RayHead(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", env)
    finally:
        _end(process, signal.SIGTERM)
        shutil.rmtree(folder, ignore_errors=True)


def _heed_ctrl_c() -> None:
    """What a shell starts in the background ignores it, and so would everything started from there."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _answers(port: int) -> bool:
    """Whether the dashboard does, be it to say that it wants a token."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/api/version")
        return connection.getresponse().status in (200, 401, 403)
    return False


def _end(process: subprocess.Popen[bytes], by: signal.Signals) -> None:
    process.send_signal(by)
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
