"""What does one hop cost, and what does waiting cost? Every channel backend beside a bare Ray actor call, in one run.

    python -m benchmarks.channels [--rounds 2000]

Two Ray actors echo a frame through each backend turn about (three passes, the medians are pooled), after a warm-up.
"idle" is the CPU time of both processes while their readers are blocked for two seconds, over those two seconds, beside
that of two actors that merely sleep (Ray's own threads). The tracer's CPU time per span is measured in this process.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from typing import Any

import ray

from cascade_runtime.channels import ChannelSpec, connect, listen
from cascade_runtime.tracing import Share, Tracer

BACKENDS = ("stream", "stream-tcp", "object_store", "call")
SIZES_BYTES = (64, 4096, 65536)
IDLE_S = 2.0


class Peer:
    """One end of every link."""

    def __init__(self) -> None:
        self.listener: Any = None
        self.channel: Any = None

    def listen(self, backend: str) -> ChannelSpec:
        address = "tcp:127.0.0.1:0" if backend == "stream-tcp" else ""
        self.listener = listen(ChannelSpec(backend=backend.partition("-")[0], link="bench", address=address))
        return self.listener.spec

    def accept(self) -> None:
        self.channel = self.listener.accept(20.0)
        self.listener.close()

    def connect(self, spec: ChannelSpec) -> None:
        self.channel = connect(spec, 20.0)

    def echo(self, rounds: int) -> None:
        for _ in range(rounds):
            self.channel.send(self.channel.recv(20.0), 20.0)

    def round_trips_us(self, rounds: int, size_bytes: int) -> list[float]:
        frame, times = bytes(size_bytes), []
        for _ in range(rounds):
            start = time.perf_counter_ns()
            self.channel.send(frame, 20.0)
            self.channel.recv(20.0)
            times.append((time.perf_counter_ns() - start) / 1000)
        return times

    def idle_cpu_share(self, reading: bool) -> float:
        start = time.process_time()
        if not reading:
            time.sleep(IDLE_S)
        elif self.channel.recv(IDLE_S) is not None:
            raise RuntimeError("a frame on an idle link")
        return (time.process_time() - start) / IDLE_S

    def close(self) -> None:
        self.channel.close()

    def same(self, frame: bytes) -> bytes:
        return frame


def open_link(a: Any, b: Any, backend: str) -> None:
    spec = ray.get(a.listen.remote(backend))
    accepted = a.accept.remote()
    ray.get([b.connect.remote(spec), accepted], timeout=30)


def channel_round_trips_us(a: Any, b: Any, backend: str, rounds: int) -> dict[int, list[float]]:
    open_link(a, b, backend)
    times = {}
    for size_bytes in SIZES_BYTES:
        for measured in (max(rounds // 10, 1), rounds):  # the first is the warm-up
            echo = b.echo.remote(measured)
            times[size_bytes] = ray.get(a.round_trips_us.remote(measured, size_bytes), timeout=300)
            ray.get(echo)
    ray.get([a.close.remote(), b.close.remote()])
    return times


def actor_call_round_trips_us(a: Any, rounds: int) -> dict[int, list[float]]:
    times: dict[int, list[float]] = {}
    for size_bytes in SIZES_BYTES:
        frame = bytes(size_bytes)
        for _ in range(rounds):
            start = time.perf_counter_ns()
            ray.get(a.same.remote(frame))
            times.setdefault(size_bytes, []).append((time.perf_counter_ns() - start) / 1000)
    return times


def idle_share(a: Any, b: Any, backend: str) -> float:
    """Cores that both ends burn with blocked readers; with no link at all for the bare actors."""
    if backend not in BACKENDS:
        return sum(ray.get([a.idle_cpu_share.remote(False), b.idle_cpu_share.remote(False)]))
    open_link(a, b, backend)
    share = sum(ray.get([a.idle_cpu_share.remote(True), b.idle_cpu_share.remote(True)]))
    ray.get([a.close.remote(), b.close.remote()])
    return share


def span_cost_ns(spans: int = 100_000) -> float:
    tracer = Tracer("bench")
    start = time.process_time_ns()
    for k in range(spans):
        tracer.record(k, k + 1, (Share(7, "verify", drafts=4),))
    return (time.process_time_ns() - start) / spans


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2000, help="round trips per backend, size and pass")
    rounds = parser.parse_args().rounds
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=300_000_000,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": root}},
    )
    actor = ray.remote(num_cpus=0, max_concurrency=8)(Peer)
    a, b = actor.remote(), actor.remote()
    pooled: dict[str, dict[int, list[float]]] = {}
    for _ in range(3):
        for backend in (*BACKENDS, "bare actor call"):
            if backend in BACKENDS:
                some = rounds if backend != "call" else max(rounds // 10, 1)
                times = channel_round_trips_us(a, b, backend, some)
            else:
                times = actor_call_round_trips_us(a, max(rounds // 10, 1))
            for size_bytes, values in times.items():
                pooled.setdefault(backend, {}).setdefault(size_bytes, []).extend(values)
    idle = {backend: idle_share(a, b, backend) for backend in pooled}
    ray.shutdown()

    print(f"{'round trip, us (p50 / p99)':<18} " + " ".join(f"{size:>15} B" for size in SIZES_BYTES) + "   idle, cores")
    result: dict[str, Any] = {}
    for backend, by_size in pooled.items():
        cells = {size: (statistics.median(v), statistics.quantiles(v, n=100)[98]) for size, v in by_size.items()}
        result[backend] = {f"{size}_bytes": {"p50_us": p50, "p99_us": p99} for size, (p50, p99) in cells.items()}
        result[backend]["idle_cores"] = idle[backend]
        row = " ".join(f"{f'{p50:.0f} / {p99:.0f}':>17}" for p50, p99 in cells.values())
        print(f"{backend:<26} {row}   {idle[backend]:.4f}")
    cost = span_cost_ns()
    print(f"one span recorded: {cost:.0f} ns")
    versions = {"ray": ray.__version__, "python": platform.python_version(), "cores": os.cpu_count()}
    print(json.dumps({"benchmark": "channels", "rounds": rounds, **versions, "span_ns": cost, "backends": result}))


if __name__ == "__main__":
    main()
