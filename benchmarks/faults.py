"""What faults and overload cost, on emulated devices: steps of 5, 25 and 100 ms that need no core.

    python -m benchmarks.faults             a pipeline without its drafter or its mid, beside its target alone
    python -m benchmarks.faults --overload  a server asked three times as much as it can do

A dead drafter that is not restarted must leave the pipeline as quick as the target alone, but for 3 %; both are
measured turn about on the same pipeline. Of a flood, what is taken is to be answered, and what is not to be refused
within 100 ms with Retry-After. Whether answers survive faults is the business of `cascade bench chaos`.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.pipeline.run import drive, local_ray, requests
from cascade_runtime.config import load_recipe
from cascade_runtime.transports.chat import chat_body
from cluster.launch import launch

RECIPE = Path(__file__).parent / "recipes" / "emulated_5_25_100.toml"
_STREAMS = 4
_FLOOD = 3.0


def dead_drafters(rounds: int, max_tokens: int) -> dict[str, float]:
    """Tokens per second of the target alone and of the pipeline: whole, without light, without mid."""
    import ray

    measured: dict[str, float] = {}
    recipe = load_recipe(RECIPE, ["supervision.restarts=0"])
    work, bare = requests(2 * _STREAMS, max_tokens), requests(2 * _STREAMS, max_tokens, speculate=False)
    with local_ray():
        for missing in ("", "light", "mid"):
            with launch(recipe) as pipeline:
                drive(pipeline, work, _STREAMS)  # the policy learns what things cost
                if missing:
                    ray.kill(pipeline.stages[missing].actor)
                    drive(pipeline, work, _STREAMS)
                alone, with_drafts = [], []
                for _ in range(rounds):
                    alone.append(drive(pipeline, bare, _STREAMS).tokens_per_s)
                    with_drafts.append(drive(pipeline, work, _STREAMS).tokens_per_s)
            name = f"without_{missing}" if missing else "whole"
            measured[name] = statistics.median(with_drafts) / statistics.median(alone)
            print(
                f"{name:>14}: {statistics.median(with_drafts):6.1f} tokens/s, "
                f"the target alone {statistics.median(alone):6.1f}: {measured[name]:.3f}x",
                flush=True,
            )
    return {f"{name}_over_alone": round(ratio, 3) for name, ratio in measured.items()}


class _Flood:
    """Requests at a rate, each on a connection and in a thread of its own."""

    def __init__(self, port: int, bodies: Sequence[bytes]) -> None:
        self._port, self._bodies = port, bodies
        self.told: list[tuple[int, float, str | None]] = []  # status, seconds, Retry-After

    def ask(self, number: int) -> None:
        """One request; from the sending of the whole of it to the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
        connection.connect()
        at = time.perf_counter()
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", self._bodies[number % len(self._bodies)], headers)
        response = connection.getresponse()
        seconds = time.perf_counter() - at
        response.read()
        connection.close()
        self.told.append((response.status, seconds, response.getheader("Retry-After")))

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


def overload(seconds: float, max_tokens: int) -> dict[str, float]:
    """What becomes of three times as many requests as a server can answer."""
    from ray import serve

    from cluster.serve_app import app

    bodies = [chat_body(request, stream=False, deadline_s=100.0) for request in requests(8, max_tokens)]
    port = 8123
    with local_ray():
        serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"log_level": "ERROR"})
        serve.run(app({"recipe": str(RECIPE), "max_queue": "16"}), name="cascade")
        calm = _Flood(port, bodies)
        askers = [threading.Thread(target=lambda k=k: [calm.ask(k) for _ in range(3)]) for k in range(16)]
        began = time.perf_counter()
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.join()
        capacity = len(calm.told) / (time.perf_counter() - began)
        flood = _Flood(port, bodies)
        began = time.perf_counter()
        flood.pour(_FLOOD * capacity, seconds)
        took_s = time.perf_counter() - began
        serve.shutdown()
    taken = [each for each in flood.told if each[0] == 200]
    refused = sorted(seconds for status, seconds, _ in flood.told if status in (429, 503))
    advised = sum(retry is not None for status, _, retry in flood.told if status in (429, 503))
    result = {
        "capacity_per_s": round(capacity, 2),
        "asked": len(flood.told),
        "answered": len(taken),
        "refused": len(refused),
        "refused_with_retry_after": advised,
        "other": len(flood.told) - len(taken) - len(refused),
        "goodput_over_capacity": round(len(taken) / took_s / capacity, 3),
        "refusal_p50_ms": round(1000 * refused[len(refused) // 2], 1) if refused else 0.0,
        "refusal_p99_ms": round(1000 * refused[int(0.99 * len(refused))], 1) if refused else 0.0,
    }
    print("\n".join(f"{name:>26}  {value}" for name, value in result.items()))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--overload", action="store_true", help="flood a server instead")
    parser.add_argument("--rounds", type=int, default=3, help="turn about")
    parser.add_argument("--seconds", type=float, default=20.0, help="of flood")
    parser.add_argument("--max-tokens", type=int, default=32)
    args = parser.parse_args()
    told: dict[str, Any] = (
        overload(args.seconds, args.max_tokens) if args.overload else dead_drafters(args.rounds, args.max_tokens)
    )
    print(json.dumps(told))


if __name__ == "__main__":
    main()
