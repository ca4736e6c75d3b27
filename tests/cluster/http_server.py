"""The HTTP server on real Ray Serve as tests see it: a toy recipe, and how the server is asked."""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
from dataclasses import dataclass
from typing import Any

SLOTS = 2
RECIPE = """
[cascade]
name = "toy"
levels = ["light", "target"]
num_draft_tokens = [3]
window = 12
slots = {slots}
max_len = 1024
[policy]
mode = "fixed"
[deadlines]
start_s = 300.0
[supervision]
restarts = 0  # a drafter that was killed is to stay dead
[stages.light]
checkpoint = "{family}/noisy"
num_cpus = 0.2
[stages.target]
checkpoint = "{family}/target"
num_cpus = 0.2
[encoder]
checkpoint = "{family}/event_encoder"
num_cpus = 0.2
[adapter]
checkpoint = "{family}/adapter"
num_cpus = 0.2
"""


@dataclass(frozen=True)
class Server:
    """A server that runs, and how to ask it."""

    port: int
    grpc_port: int

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, data, {"Content-Type": "application/json"} | named)
        response = connection.getresponse()
        raw = response.read()
        connection.close()
        got = {name.lower(): value for name, value in response.getheaders()}
        return response.status, json.loads(raw) if got["content-type"] == "application/json" else raw.decode(), got

    def chat(self, body: Any, **headers: str) -> tuple[int, Any, dict[str, str]]:
        return self.call("POST", "/v1/chat/completions", body, **headers)

    def metric(self, name: str) -> int:
        """The sum of a metric over its labels; a busy machine's controller may be too late for one scrape."""
        end, text = time.monotonic() + 20, ""
        while 'cascade:stage_up{stage="controller"} 1' not in text:
            assert time.monotonic() < end, text
            text = self.call("GET", "/metrics")[1]
        return sum(int(float(value)) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE))

    def opened(self, body: Any) -> socket.socket:
        """A request that was sent, nothing read of its answer."""
        data = json.dumps(body).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        client = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        client.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        return client

    def until(self, name: str, value: int) -> None:
        end = time.monotonic() + 20
        while (now := self.metric(name)) != value:
            assert time.monotonic() < end, f"{name} is {now}, not {value}"
