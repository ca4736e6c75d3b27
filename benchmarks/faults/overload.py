"""Of a flood, what a server takes is to be answered, and the rest to be refused at once."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.faults.recipe import PATH, recipe, rows
from benchmarks.pipeline.run import local_ray, requests
from cascade_runtime.transports.chat import chat_body
from cluster.chaos.outcome import quantile

_FLOOD = 3.0
_QUEUE = 16
_REFUSED = (429, 503)


class _Flood:
    """Requests at a rate, each on a connection and in a thread of its own."""

    def __init__(self, port: int, bodies: Sequence[bytes]) -> None:
        self._port, self._bodies = port, bodies
        self.told: list[tuple[int, float, str | None]] = []  # status, seconds, Retry-After

    def ask(self, number: int) -> None:
        """One request; seconds from its sending to the first of the answer. Status 0: the connection broke."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
        status, at, advice = 0, time.perf_counter(), None
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection.connect()
            at = time.perf_counter()
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/chat/completions", self._bodies[number % len(self._bodies)], headers)
            response = connection.getresponse()
            seconds, advice = time.perf_counter() - at, response.getheader("Retry-After")
            response.read()
            status = response.status
            self.told.append((status, seconds, advice))
        if not status:
            self.told.append((0, time.perf_counter() - at, None))
        connection.close()

    def pour(self, rate: float, seconds: float) -> None:
        """So many a second; returns when all of them are answered."""
        threads: list[threading.Thread] = []
        began = time.perf_counter()
        while (due := began + len(threads) / rate) < began + seconds:
            time.sleep(max(0.0, due - time.perf_counter()))
            threads.append(threading.Thread(target=self.ask, args=(len(threads),)))
            threads[-1].start()
        for thread in threads:
            thread.join()


def overload(args: argparse.Namespace) -> dict[str, Any]:
    """What becomes of three times as many requests as a server can answer."""
    from ray import serve

    from cluster.serve_app import app

    bodies = [chat_body(request, stream=False, deadline_s=100.0) for request in requests(8, args.max_tokens)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with contextlib.redirect_stdout(sys.stderr), local_ray():
        serve.start(
            http_options={"host": "127.0.0.1", "port": port},
            logging_config={"log_level": "ERROR", "enable_access_log": False},
        )
        serve.run(app({"recipe": str(PATH), "max_queue": str(_QUEUE)}), name="cascade")
        capacity = _capacity(_Flood(port, bodies))
        flood = _Flood(port, bodies)
        began = time.perf_counter()
        flood.pour(_FLOOD * capacity, args.seconds)
        took_s = time.perf_counter() - began
        serve.shutdown()
    told = _told(flood, capacity, took_s)
    print(rows(told), flush=True)
    return told


def _capacity(calm: _Flood) -> float:
    """Answers a second while as many ask all the time as there are slots."""
    askers = [
        threading.Thread(target=lambda k=k: [calm.ask(k) for _ in range(3)]) for k in range(recipe().cascade.slots)
    ]
    began = time.perf_counter()
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert all(status == 200 for status, *_ in calm.told), calm.told
    return len(calm.told) / (time.perf_counter() - began)


def _told(flood: _Flood, capacity: float, took_s: float) -> dict[str, Any]:
    taken = sum(status == 200 for status, *_ in flood.told)
    refused = sorted(seconds for status, seconds, _ in flood.told if status in _REFUSED)
    advised = sum(advice is not None for status, _, advice in flood.told if status in _REFUSED)
    return {
        "capacity_per_s": round(capacity, 2),
        "asked": len(flood.told),
        "answered": taken,
        "refused": len(refused),
        "refused_with_retry_after": advised,
        "other": len(flood.told) - taken - len(refused),
        "goodput_over_capacity": round(taken / took_s / capacity, 3),
        "refusal_p50_ms": round(1000 * quantile(refused, 0.5), 1),
        "refusal_p99_ms": round(1000 * quantile(refused, 0.99), 1),
        "refusal_longest_ms": round(1000 * quantile(refused, 1.0), 1),
    }
