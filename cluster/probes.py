"""How fast nodes compute, and how fast they reach each other: short tasks on them, each with a deadline.

    step speed     on every node: a matrix product and a copy, on one core or one GPU, a quarter of a second in all
    link speed     between two nodes: token-sized frames there and back, then as many bytes as half a second takes, over
                   the same authenticated TCP channel that carries token blocks

Other work on a node makes it look slower: that is what it would be for a stage, too. A node that does not answer in
time, or whose GPUs are taken, is not waited for; the caller is told which ones.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cascade_runtime.channels import ChannelSpec, connect, listen
from cascade_runtime.errors import ChannelError, DeadlineExceeded

_WORK_S = 0.06
_PINGS = 20
_PING = b"p" * 64
_FRAME_BYTES, _FRAMES, _UNANSWERED = 1 << 18, 256, 8
_SENDING_S = 0.5
_LITTLE_GPU = 0.01
_COPIED_BYTES = 1 << 26  # more than any cache holds


@dataclass(frozen=True)
class StepSpeed:
    """Of one core or one GPU: operations per second, bytes per second of its memory and to it. memory_bytes: the GPU's,
    0 for a core. device: "cpu" or the GPU's name.
    """

    device: str
    memory_bytes: int
    flops: Mapping[str, float]
    bytes_per_s: float
    load_bytes_per_s: float


@dataclass(frozen=True)
class LinkSpeed:
    """One way, between two nodes."""

    latency_ms: float
    mbit_s: float


def probe_steps(nodes: Mapping[str, bool], timeout_s: float) -> dict[str, StepSpeed]:
    """Node id -> its speed. nodes: ids, and whether each has GPUs. Without those that did not answer in time."""
    task: Any = ray.remote(measure_step)
    asked = {}
    for node_id, gpu in nodes.items():
        here = task.options(num_cpus=0, num_gpus=_LITTLE_GPU if gpu else 0, max_retries=0, **_on(node_id))
        asked[node_id] = here.remote(gpu)
    return _gathered(asked, timeout_s)


def probe_links(pairs: Sequence[tuple[str, str]], addresses: Mapping[str, str], timeout_s: float) -> dict[Any, Any]:
    """Pair of node ids -> `LinkSpeed`. Without those that did not answer in time."""
    echo_class: Any = ray.remote(Echo)
    task: Any = ray.remote(measure_link)
    echoes = {}
    asked = {}
    try:
        for pair in pairs:
            here, there = pair
            echoes[pair] = echo = echo_class.options(num_cpus=0, max_restarts=0, **_on(here)).remote(addresses[here])
            on = task.options(num_cpus=0, max_retries=0, **_on(there))
            asked[pair] = on.remote(echo.open.remote(), timeout_s)
            echo.answer.remote(timeout_s)
        return _gathered(asked, timeout_s)
    finally:
        for echo in echoes.values():
            ray.kill(echo, no_restart=True)


def _on(node_id: str) -> dict[str, Any]:
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=False)}


def _gathered(asked: Mapping[Any, Any], timeout_s: float) -> dict[Any, Any]:
    ready, late = ray.wait(list(asked.values()), num_returns=len(asked), timeout=timeout_s) if asked else ([], [])
    for reference in late:
        ray.cancel(reference, force=True)
    found = {}
    for key, reference in asked.items():
        if reference in ready:
            try:
                found[key] = ray.get(reference)
            except RayError:  # a node that went meanwhile, or a link that nothing passes: as if it had not answered
                continue
    return found


# -- on the nodes ----------------------------------------------------------------------------------------------------


def measure_step(gpu: bool) -> StepSpeed:
    """What one core, or the GPU that this process was given, computes and copies."""
    import torch

    device = torch.device("cuda" if gpu and torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
    size = 4096 if device.type == "cuda" else 384

    def finish() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    flops = {}
    for dtype in (torch.float32, torch.bfloat16):
        square = torch.ones(size, size, dtype=dtype, device=device)
        seconds = _seconds(lambda square=square: torch.mm(square, square), finish)
        flops[str(dtype).removeprefix("torch.")] = 2 * size**3 / seconds
    block = torch.ones(_COPIED_BYTES, dtype=torch.uint8, device=device)
    other = torch.empty_like(block)
    copied = 2 * block.numel() / _seconds(lambda: other.copy_(block), finish)
    host = torch.ones(_COPIED_BYTES, dtype=torch.uint8, pin_memory=True) if device.type == "cuda" else block
    loaded = host.numel() / _seconds(lambda: other.copy_(host), finish)
    if device.type == "cpu":
        return StepSpeed("cpu", 0, flops, copied, loaded)
    facts = torch.cuda.get_device_properties(device)
    return StepSpeed(facts.name, facts.total_memory, flops, copied, loaded)


def _seconds(work: Callable[[], object], finish: Callable[[], None]) -> float:
    """The shortest of the calls that fit into a moment, at least three: what the device can, not what disturbs it."""
    work()
    finish()
    shortest, calls, end = float("inf"), 0, time.perf_counter() + _WORK_S
    while calls < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        finish()
        shortest, calls = min(shortest, time.perf_counter() - start), calls + 1
    return max(shortest, 1e-9)


class Echo:
    """The far end of a link: says every frame back, a long one by one byte."""

    def __init__(self, address: str) -> None:
        spec = ChannelSpec(backend="stream", link="probe", address=f"tcp:{address}:0", max_frame_bytes=_FRAME_BYTES)
        self._listener = listen(spec)

    def open(self) -> ChannelSpec:
        """Where to connect."""
        return self._listener.spec

    def answer(self, timeout_s: float) -> None:
        """Echo until the other end closes, or it has been silent for so long."""
        channel = self._listener.accept(timeout_s)
        try:
            while (frame := channel.recv(timeout_s)) is not None:
                channel.send(frame if len(frame) <= len(_PING) else b"!", timeout_s)
        except (ChannelError, DeadlineExceeded):
            pass  # it has what it wanted
        finally:
            channel.close()
            self._listener.close()


def measure_link(spec: ChannelSpec, timeout_s: float) -> LinkSpeed:
    """Latency and rate to whoever listens there. Raises `ChannelError`, `DeadlineExceeded`."""
    channel = connect(spec, timeout_s)
    try:
        trips = [_trip(channel, timeout_s) for _ in range(_PINGS)]
        sent = answered = 0
        frame, start = bytes(_FRAME_BYTES), time.perf_counter()
        while answered < sent or (sent < _FRAMES and time.perf_counter() - start < _SENDING_S):
            more = sent < _FRAMES and time.perf_counter() - start < _SENDING_S
            if more and sent - answered < _UNANSWERED:
                channel.send(frame, timeout_s)
                sent += 1
            elif channel.recv(timeout_s) is None:
                raise DeadlineExceeded(f"link {spec.link!r}: no answer in time")
            else:
                answered += 1
        seconds = max(time.perf_counter() - start, 1e-9)
        return LinkSpeed(1000 * statistics.median(trips) / 2, 8e-6 * answered * _FRAME_BYTES / seconds)
    finally:
        channel.close()


def _trip(channel: Any, timeout_s: float) -> float:
    start = time.perf_counter()
    channel.send(_PING, timeout_s)
    if channel.recv(timeout_s) is None:
        raise DeadlineExceeded("no answer in time")
    return time.perf_counter() - start
