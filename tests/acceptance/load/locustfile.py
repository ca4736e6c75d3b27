"""Load by locust: everybody asks about the same scene, every third as a stream; the answer must be the same each time.

    locust -f tests/acceptance/load/locustfile.py --headless -u 8 -r 8 -t 30s --host http://127.0.0.1:8000 --json

MESSAGES names a file of messages (see `served.write_messages`).
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from locust import HttpUser, task

MESSAGES = json.loads(Path(os.environ["MESSAGES"]).read_text())
BODY = {"model": "cascade", "messages": MESSAGES, "max_tokens": 60}
_texts: set[str] = set()


class Asker(HttpUser):
    """One who asks again as soon as it has its answer."""

    @task(2)
    def ask(self) -> None:
        """A whole answer."""
        with self.client.post("/v1/chat/completions", json=BODY, name="chat", catch_response=True) as response:
            if response.status_code == 200:
                self._compare(response, response.json()["choices"][0]["message"]["content"])

    @task(1)
    def stream(self) -> None:
        """The same as a stream; the time to its first text is a line of its own in the table."""
        begun, first, text = time.perf_counter(), 0.0, ""
        with self.client.post(
            "/v1/chat/completions", json=BODY | {"stream": True}, stream=True, name="stream", catch_response=True
        ) as response:
            for line in response.iter_lines():
                if line.startswith(b"data: {"):
                    for choice in json.loads(line[6:])["choices"]:
                        text += choice["delta"].get("content", "")
                    first = first or (time.perf_counter() - begun if text else 0.0)
            self._compare(response, text)
        self.environment.events.request.fire(
            request_type="TTFT",
            name="stream",
            response_time=1000 * first,
            response_length=0,
            exception=None,
            context={},
        )

    def _compare(self, response: Any, text: str) -> None:
        _texts.add(text)
        if len(_texts) > 1 or not text:
            response.failure("another answer than before")
