"""What does Ray Serve cost? The same pipeline with and without an HTTP server in front of it, turn about in one run.

    python -m benchmarks.serve_overhead [--recipe light_heavy] [--streams 1 16] [--rounds 5] [--quick]

Two pipelines of one recipe on one Ray, of which one works at a time (the other waits and costs nothing):

    direct    this process -> controller actor -> stages                              `RayTransport`
    serve     this process -> HTTP, SSE -> Serve's proxy -> replica -> controller -> stages      `HttpTransport`

Both are asked through the same client protocol, in streams of rounds, about the same scenes; `--streams` of them ask
their next question as soon as they have an answer. TTFT is measured here, from asking to the first text; over HTTP it
has in it that the recording travels (Arrow, zstd, base64), is validated and decoded. Per round the median TTFT and the
tokens per second of all; the figures are medians over rounds, differences and ratios medians of the rounds' own. Token
ids of all answers are compared, and where they differ the benchmark fails. A table, and one last line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import socket
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

from benchmarks.throughput.measure import questions
from cascade_runtime.api import Answer, GenerateRequest
from cascade_runtime.config import Recipe, load_recipe
from cascade_runtime.transports import Transport, open_transport
from cascade_runtime.transports.base import Remote
from cluster.launch import connect
from cluster.ray_transport import RayTransport
from cluster.serving.settings import ServerSettings

FIRST_SCENE = 9_500_000  # far from the seeds of training
TIMEOUT_S = 100.0
PACKAGES = ("ray", "torch", "transformers", "numpy", "httpx2", "uvicorn")


@dataclass(frozen=True)
class Turn:
    """One turn of one side: the answers in order, time to the first text of each, seconds of all."""

    answers: Sequence[Answer]
    ttft_ms: Sequence[float]
    wall_s: float

    @property
    def tokens_per_s(self) -> float:
        return sum(len(answer.token_ids) for answer in self.answers) / self.wall_s

    @property
    def ttft_p50_ms(self) -> float:
        return statistics.median(self.ttft_ms)


async def one_turn(transport: Transport, work: Sequence[GenerateRequest], streams: int) -> Turn:
    """Each of `streams` takes the next question when it has an answer. Raises the first error."""
    waiting = list(enumerate(work))[::-1]
    answers: dict[int, Answer] = {}
    ttft_ms: dict[int, float] = {}

    async def stream() -> None:
        while waiting:
            number, request = waiting.pop()
            asked = time.perf_counter()
            fresh = replace(request, request_id=os.urandom(8).hex())
            async for _, update in transport.run([fresh], TIMEOUT_S, True):
                ttft_ms.setdefault(number, 1000 * (time.perf_counter() - asked))
                if isinstance(update, Exception):
                    raise update
                if isinstance(update, Answer):
                    answers[number] = update

    begun = time.perf_counter()
    await asyncio.gather(*(stream() for _ in range(streams)))
    wall_s = time.perf_counter() - begun
    return Turn([answers[at] for at in range(len(work))], [ttft_ms[at] for at in range(len(work))], wall_s)


async def measure(sides: dict[str, Transport], args: argparse.Namespace) -> dict[int, dict[str, list[Turn]]]:
    """Streams -> side -> turns; the first round warms up and is not kept. Who begins changes from round to round."""
    told: dict[int, dict[str, list[Turn]]] = {}
    for streams in args.streams:
        work = questions(streams * args.requests if streams > 1 else 4 * args.requests, FIRST_SCENE, args.max_tokens)
        turns: dict[str, list[Turn]] = {name: [] for name in sides}
        for number in range(-1, args.rounds):
            for name in list(sides)[:: -1 if number % 2 else 1]:
                turn = await one_turn(sides[name], work, streams)
                if number >= 0:
                    turns[name].append(turn)
        told[streams] = turns
        print(f"{streams} streams: measured", file=sys.stderr, flush=True)
    return told


def figures(turns: dict[str, list[Turn]]) -> dict[str, Any]:
    """Medians of each side, and what Serve adds: medians over the rounds' own differences and ratios."""
    direct, serve = turns["direct"], turns["serve"]
    pairs = list(zip(direct, serve, strict=True))
    ids = [[answer.token_ids for answer in turn.answers] for side in turns.values() for turn in side]
    return {
        **{
            name: {
                "ttft_ms": round(statistics.median(turn.ttft_p50_ms for turn in side), 2),
                "tokens_per_s": round(statistics.median(turn.tokens_per_s for turn in side), 1),
            }
            for name, side in turns.items()
        },
        "ttft_added_ms": round(statistics.median(b.ttft_p50_ms - a.ttft_p50_ms for a, b in pairs), 2),
        "tokens_per_s_ratio": round(statistics.median(b.tokens_per_s / a.tokens_per_s for a, b in pairs), 3),
        "ratios": [round(b.tokens_per_s / a.tokens_per_s, 3) for a, b in pairs],
        "questions": len(direct[0].answers),
        "tokens": sum(len(answer.token_ids) for answer in direct[0].answers),
        "identical": all(each == ids[0] for each in ids),
    }


def table(told: dict[str, Any]) -> str:
    """What is printed for people."""
    lines = [f"{told['recipe']}, {told['rounds']} rounds; {told['machine']}", ""]
    names = f"{'TTFT direct':>13}{'Serve':>9}{'added':>9}{'tokens/s direct':>18}{'Serve':>9}{'ratio':>8}"
    lines.append(f"{'':12}{names}")
    for streams, row in told["streams"].items():
        direct, serve = row["direct"], row["serve"]
        ttft = f"{direct['ttft_ms']:>10.1f} ms{serve['ttft_ms']:>6.1f} ms{row['ttft_added_ms']:>6.1f} ms"
        speed = f"{direct['tokens_per_s']:>18.1f}{serve['tokens_per_s']:>9.1f}{row['tokens_per_s_ratio']:>8.3f}"
        lines.append(f"{streams + ' streams':12}{ttft}{speed}")
    lines.append(f"answers identical: {told['identical']}")
    return "\n".join(lines)


def serve_pipeline(settings: ServerSettings) -> Transport:
    """A server of its own pipeline on the Ray that runs, and a client of it."""
    from ray import serve

    from cluster.serve_app import application

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(
        http_options={"host": "127.0.0.1", "port": port},
        logging_config={"log_level": "ERROR", "enable_access_log": False},
    )
    serve.run(application(settings), name="overhead", route_prefix="/")
    url = f"http://127.0.0.1:{port}"
    return open_transport(url, Remote(url=url, max_retries=0))


def main(argv: list[str] | None = None) -> int:
    """Measure and print. Returns 1 where answers differ."""
    args = _arguments(argv)
    recipe, overrides = _recipe(args)
    from ray import serve, shutdown

    connect(recipe, None, lambda line: print(line, file=sys.stderr, flush=True), pipelines=2)

    async def run() -> dict[int, dict[str, list[Turn]]]:
        direct = await asyncio.to_thread(RayTransport, recipe)
        try:
            settings = ServerSettings(recipe=args.recipe, overrides=overrides, max_queue=48)
            served = await asyncio.to_thread(serve_pipeline, settings)
            try:
                return await measure({"direct": direct, "serve": served}, args)
            finally:
                await served.close()
        finally:
            await direct.close()

    try:
        turns = asyncio.run(run())
    finally:
        serve.shutdown()
        shutdown()
    rows = {str(streams): figures(each) for streams, each in turns.items()}
    told: dict[str, Any] = {
        "benchmark": "serve_overhead",
        "recipe": recipe.name,
        "slots": recipe.cascade.slots,
        "rounds": args.rounds,
        "max_tokens": args.max_tokens,
        "streams": rows,
        "identical": all(row["identical"] for row in rows.values()),
        "machine": f"{platform.node()}, {os.cpu_count()} cores, {platform.machine()}",
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }
    print(table(told), flush=True)
    print(json.dumps(told))
    return 0 if told["identical"] else 1


def _recipe(args: argparse.Namespace) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe with a slot for every stream."""
    overrides = (*args.set, f"cascade.slots={max(args.streams)}")
    return load_recipe(args.recipe, overrides), overrides


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.serve_overhead", description="Ray Serve beside no Serve.")
    parser.add_argument("--recipe", default="light_heavy", metavar="RECIPE")
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--requests", type=int, default=2, metavar="N", help="of a stream and turn; four times that of one"
    )
    parser.add_argument("--max-tokens", type=int, default=60)
    parser.add_argument("--quick", action="store_true", help="two rounds")
    args = parser.parse_args(argv)
    args.rounds = 2 if args.quick else args.rounds
    return args


if __name__ == "__main__":
    raise SystemExit(main())
