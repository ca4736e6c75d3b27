"""`cascade edge` and `cascade edge-server`: the two ends of the link between an edge box and the core."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cascade_runtime.config import SamplingParams, load_recipe, recipe_names
from cascade_runtime.errors import AccessError, ConfigError, RemoteError
from cluster.edge import PORT

if TYPE_CHECKING:
    from cascade_runtime.events import Events
    from cluster.edge.box import EdgeBox, Reply
    from cluster.edge.counters import EdgeMetrics
    from cluster.edge.doors import EdgeDoor

    Read = Callable[[Path], Events]

_STATUS_S = 10.0


def add_edge(commands: Any, read: Read) -> None:
    """The parsers of `edge` and `edge-server`. read: how a recording is read."""
    edge = commands.add_parser("edge", help="ask a core about every window of a camera or a recording")
    edge.add_argument(
        "file", type=Path, nargs="?", metavar="FILE", help="a recording, which is replayed; -: a camera's Arrow stream"
    )
    edge.add_argument("--server", required=True, metavar="HOST[:PORT]", help=f"of `cascade edge-server`; port {PORT}")
    edge.add_argument("-q", "--question")
    edge.add_argument("--cut", default="raw", help="what crosses: raw, frames, features or drafts (default: raw)")
    edge.add_argument("--recipe", metavar="NAME|FILE.toml", help="what runs here (features, drafts)")
    edge.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE", help="change the recipe")
    edge.add_argument("--window-ms", type=float, default=50.0, metavar="MS")
    edge.add_argument("--speed", type=float, default=1.0, metavar="X", help="of the replay; inf: as they are taken")
    edge.add_argument("--keep", default="newest", help="when windows must wait: newest, join or all (default: newest)")
    edge.add_argument("--waiting", type=int, default=64, metavar="N", help="windows that may wait for the link")
    edge.add_argument("--max-events", type=int, default=2_000_000, metavar="N", help="of a window; its newest are kept")
    edge.add_argument("--ahead", type=int, default=16, metavar="N", help="windows that may be without an answer")
    edge.add_argument("--give-up-s", type=float, default=60.0, metavar="S", help="without any link")
    edge.add_argument("--max-tokens", type=int, default=SamplingParams().max_tokens, metavar="N")
    edge.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy")
    edge.add_argument("--seed", type=int, default=0, metavar="N")
    edge.add_argument("--token-file", type=Path, metavar="FILE")
    edge.add_argument("--tls", action="store_true", help="with the authorities that the system trusts")
    edge.add_argument("--ca", type=Path, metavar="FILE.pem", help="TLS, with this authority")
    edge.add_argument("--plaintext", action="store_true", help="say the token in the clear: the network encrypts")
    edge.add_argument("--status", action="store_true", help="what the core says of your sessions, and no more")
    edge.add_argument("--json", action="store_true", help="a line of JSON per window, and one at the end")
    edge.set_defaults(run=lambda args: _edge(args, read))

    server = commands.add_parser("edge-server", help="the core that `cascade edge` asks")
    names = ", ".join(recipe_names())
    server.add_argument("recipe", nargs="?", default="three_level", metavar="RECIPE", help=f"{names}, or a .toml file")
    server.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE", help="change the recipe")
    server.add_argument(
        "--target",
        default="in-process",
        metavar="WHERE",
        help="in-process, ray, ray://HOST:PORT of a cluster that runs here",
    )
    server.add_argument("--host", default="127.0.0.1", help="another than this machine's own needs tokens and TLS")
    server.add_argument("--port", type=int, default=PORT)
    server.add_argument("--token-file", type=Path, metavar="FILE", help="a token a line; every call then needs one")
    server.add_argument("--ssl-certfile", type=Path, metavar="FILE")
    server.add_argument("--ssl-keyfile", type=Path, metavar="FILE")
    server.add_argument("--plaintext", action="store_true", help="no TLS on any address: the network encrypts")
    server.add_argument("--concurrency", type=int, default=2, metavar="N", help="windows of a session at a time")
    server.add_argument("--grace-s", type=float, default=120.0, metavar="S", help="a session without a link is kept")
    server.add_argument("--metrics-port", type=int, metavar="PORT", help="counters for Prometheus, on this machine")
    server.set_defaults(run=_serve)


def _edge(args: argparse.Namespace, read: Read) -> int:
    from cluster.edge.doors import EdgeDoor, read_token

    token = read_token(args.token_file) if args.token_file else ""
    door = EdgeDoor(server=args.server, token=token, tls=args.tls, authority=args.ca, plaintext=args.plaintext)
    if args.status:
        print(json.dumps(asyncio.run(_status(door))))
        return 0
    if args.file is None or args.question is None:
        raise ConfigError("FILE, --question", (str(args.file), args.question), "both, or --status")
    from cluster.edge.box import EdgeBox, EdgeSettings

    if not 0.001 <= args.window_ms <= 1000:
        raise ConfigError("--window-ms", args.window_ms, "0.001 to 1000")
    settings = EdgeSettings(
        question=args.question,
        cut=args.cut,
        sampling=SamplingParams(max_tokens=args.max_tokens, temperature=args.temperature, seed=args.seed),
        window_us=round(1000 * args.window_ms),
        speed=args.speed,
        keep=args.keep,
        waiting=args.waiting,
        max_events=args.max_events,
        ahead=args.ahead,
        give_up_s=args.give_up_s,
        recipe=load_recipe(args.recipe, args.set) if args.recipe else None,
    )
    if str(args.file) == "-":
        from cluster.edge.sensor import Pipe, arrow_sensor

        settings.check_sensor()
        source: Any = arrow_sensor(Pipe(sys.stdin.fileno()), settings.window_us)
    else:
        source = read(args.file)

    async def run() -> EdgeBox:
        box = EdgeBox(settings, door, source)
        await box.run(lambda reply: print(_json(reply) if args.json else _line(reply), flush=True))
        return box

    box = asyncio.run(run())
    print(json.dumps(summary(box)), file=sys.stdout if args.json else sys.stderr)
    return 0


def summary(box: EdgeBox) -> dict[str, Any]:
    """What an edge counted of one run."""
    counts, ingest = box.link.counts, box.ingest.counts
    names = [field.name for field in ingest.DESCRIPTOR.fields]
    drafter = vars(box.drafter.counts) if box.drafter is not None else {}
    return {
        **{name: getattr(ingest, name) for name in names},
        **vars(counts),
        **drafter,
        "clock_error_ms": round(box.link.clock.error_ns / 1e6, 3),
    }


def _json(reply: Reply) -> str:
    outcome = reply.outcome
    kind = type(outcome).Kind.Name(outcome.kind).lower()
    said: dict[str, Any] = {"window": outcome.number, "begin_us": reply.begin_us, "end_us": reply.end_us, "is": kind}
    if outcome.error:
        said |= {"error": outcome.error, "problem": outcome.problem}
    if kind == "answered":
        said |= {"text": outcome.answer.text, "token_ids": list(outcome.answer.token_ids)}
        said |= {"drafted": outcome.drafted, "accepted": outcome.accepted}
    latency_ms = {stage: round(each_ms, 3) for stage, each_ms in reply.latency_ms.items()}
    return json.dumps(said | {"latency_ms": latency_ms, "payload_bytes": reply.payload_bytes})


def _line(reply: Reply) -> str:
    outcome = reply.outcome
    text = {
        type(outcome).DROPPED: "(dropped: a newer window came)",
        type(outcome).FAILED: f"({outcome.error}: {outcome.problem})",
    }.get(outcome.kind, outcome.answer.text)
    stages = ", ".join(f"{stage} {each_ms:.0f}" for stage, each_ms in reply.latency_ms.items())
    shown = "".join(c if c.isprintable() else " " for c in text)
    return f"{reply.begin_us / 1e6:9.3f} s  {shown}  [ms after the sensor: {stages}]"


async def _status(door: EdgeDoor) -> dict[str, Any]:
    import grpc
    from google.protobuf.json_format import MessageToDict

    from cascade_runtime.proto import edge_pb2, edge_pb2_grpc

    async with door.channel() as channel:
        stub = edge_pb2_grpc.EdgeLinkStub(channel)
        try:
            reply = await stub.Status(edge_pb2.StatusRequest(), metadata=door.metadata, timeout=_STATUS_S)
        except grpc.aio.AioRpcError as error:
            kind = AccessError if error.code() == grpc.StatusCode.UNAUTHENTICATED else RemoteError
            raise kind(f"{door.server}: {error.details()}") from None
    return MessageToDict(reply, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def _serve(args: argparse.Namespace) -> int:
    from cluster.edge.doors import CoreDoor
    from cluster.edge.session import SessionLimits
    from cluster.serving.api_keys import read_key_file

    door = CoreDoor(
        host=args.host,
        port=args.port,
        key_digests=read_key_file(args.token_file) if args.token_file else (),
        certificate=args.ssl_certfile,
        key=args.ssl_keyfile,
        plaintext=args.plaintext,
    )
    limits = SessionLimits(concurrency=args.concurrency)
    if args.target not in ("in-process", "ray") and not args.target.lower().startswith("ray://"):
        raise ConfigError("--target", args.target, "in-process, ray, ray://HOST:PORT: this is where stages are started")
    if not (math.isfinite(args.grace_s) and args.grace_s > 0):
        raise ConfigError("--grace-s", args.grace_s, "a number above 0")
    recipe = load_recipe(args.recipe, args.set)

    from cluster.edge.core import EdgeCore
    from cluster.edge.pipeline import open_pipeline
    from cluster.edge.seeing import seeing_of

    def report(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    report(f"loading {recipe.name}: {', '.join(recipe.cascade.levels)}")
    transport, relay = open_pipeline(args.target, recipe)

    async def serve() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(transport.close)
            core = EdgeCore(seeing_of(recipe), transport, door, limits, grace_s=args.grace_s, relay=relay)
            if args.metrics_port is not None:
                _expose(core.metrics, args.metrics_port)
            port = await stack.enter_async_context(core.serving())
            tls = "TLS" if door.certificate is not None else "no TLS"
            report(f"{args.host}:{port}, {tls}, {'with tokens' if door.key_digests else 'no tokens'} (Ctrl-C stops)")
            await stop.wait()

    asyncio.run(serve())
    return 0


def _expose(metrics: EdgeMetrics, port: int) -> None:
    from prometheus_client import start_http_server

    try:
        start_http_server(port, "127.0.0.1", metrics.registry)
    except (OSError, OverflowError) as error:
        raise ConfigError("--metrics-port", port, f"a free port ({error})") from error
