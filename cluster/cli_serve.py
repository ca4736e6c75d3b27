"""`cascade serve RECIPE`: the HTTP server, and the gRPC server if it has a port, on a Ray of its own or on one that
runs, until it is told to stop.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import socket
import ssl
import sys
import threading
import time
from pathlib import Path
from typing import Any

from cascade_runtime.config import recipe_names
from cascade_runtime.errors import CascadeError, ConfigError

APPLICATION = "cascade"
_DRAIN_CALL_S, _DRAIN_LOOK_S = 5.0, 0.2


def add_serve(commands: Any) -> None:
    """The parser of `serve`."""
    serve = commands.add_parser("serve", help="answer over HTTP, as OpenAI's chat completions do (Ray Serve)")
    names = ", ".join(recipe_names())
    serve.add_argument("recipe", nargs="?", default="three_level", metavar="RECIPE", help=f"{names}, or a .toml file")
    serve.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE", help="change the recipe")
    serve.add_argument("--host", default="127.0.0.1", help="another than this machine's own needs --api-key-file")
    serve.add_argument("--port", type=int, default=8000)
    serve.add_argument("--grpc-port", type=int, default=0, metavar="N", help="answer over gRPC as well, on this port")
    serve.add_argument("--model", default="cascade", metavar="NAME", help="what clients call it")
    serve.add_argument("--api-key-file", type=Path, metavar="FILE", help="a key a line; every request then needs one")
    serve.add_argument("--media-dir", type=Path, metavar="DIR", help="file: URLs below it are read")
    serve.add_argument("--files-dir", type=Path, metavar="DIR", help="uploads and batches stay there over restarts")
    serve.add_argument("--max-file-mb", type=int, default=256, metavar="N", help="of one uploaded file")
    serve.add_argument("--max-queue", type=int, default=32, metavar="N", help="requests that wait for a slot")
    serve.add_argument("--max-body-mb", type=int, default=64, metavar="N")
    serve.add_argument("--key-concurrency", type=int, default=0, metavar="N", help="of one key at a time; 0: any")
    serve.add_argument("--key-per-minute", type=int, default=0, metavar="N", help="of one key; 0: any")
    serve.add_argument("--replicas", type=int, default=1, metavar="N", help="whole pipelines")
    serve.add_argument("--address", help="a Ray that runs already; without, one is started")
    certificate, key = "PEM, its chain included: https", "PEM; together with --tls-cert"
    serve.add_argument("--tls-cert", "--ssl-certfile", dest="ssl_certfile", type=Path, metavar="FILE", help=certificate)
    serve.add_argument("--tls-key", "--ssl-keyfile", dest="ssl_keyfile", type=Path, metavar="FILE", help=key)
    serve.set_defaults(run=_serve)


def _settings(args: argparse.Namespace) -> Any:
    """What was asked for on the command line. Raises `ConfigError`."""
    from cluster.serving.settings import ServerSettings

    given: dict[str, Any] = {
        "recipe": args.recipe,
        "overrides": args.set,
        "model": args.model,
        "media_dir": str(args.media_dir.resolve()) if args.media_dir else None,
        "max_queue": args.max_queue,
        "max_body_bytes": args.max_body_mb << 20,
        "key_concurrency": args.key_concurrency,
        "key_per_minute": args.key_per_minute,
        "replicas": args.replicas,
        "files_dir": str(args.files_dir.resolve()) if args.files_dir else None,
        "max_file_bytes": args.max_file_mb << 20,
        "grpc_port": args.grpc_port,
        "grpc_host": args.host,
        "grpc_certfile": str(args.ssl_certfile.resolve()) if args.ssl_certfile else None,
        "grpc_keyfile": str(args.ssl_keyfile.resolve()) if args.ssl_keyfile else None,
    }
    return ServerSettings.from_args(given | ({"api_key_file": args.api_key_file} if args.api_key_file else {}))


def _serve(args: argparse.Namespace) -> int:
    _check_tls(args.ssl_certfile, args.ssl_keyfile)
    settings = _settings(args)
    settings.check_address(args.host)
    _check_free(args.host, args.grpc_port, "--grpc-port")
    _check_free(args.host, args.port if args.address is None else 0, "--port")
    recipe = settings.load_recipe()

    from cluster.serving.proxy_limits import limit_proxies

    limit_proxies(settings.max_body_bytes, settings.max_file_bytes)

    import ray
    from ray import serve

    from cluster.launch import connect
    from cluster.serve_app import application

    def report(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    stop = threading.Event()
    owns_ray = connect(recipe, args.address, report, pipelines=max(settings.replicas, recipe.cascade.replicas))
    try:
        tls = {"ssl_certfile": args.ssl_certfile, "ssl_keyfile": args.ssl_keyfile}
        _start_serve(args.host, args.port, {name: str(path.resolve()) for name, path in tls.items() if path})
        report(f"starting {recipe.name}: loading {', '.join(recipe.cascade.levels)}")
        try:
            serve.run(application(settings), name=APPLICATION, route_prefix="/")
            for number in (signal.SIGINT, signal.SIGTERM):  # now: Ray has set handlers of its own, which end at once
                signal.signal(number, lambda *_: stop.set())
            secure = "s" if args.ssl_certfile else ""
            if args.grpc_port:
                report(f"grpc{secure}://{args.host}:{args.grpc_port}")
            report(f"http{secure}://{args.host}:{args.port}/v1  (Ctrl-C drains and stops)")
            stop.wait()
            report("draining")
        finally:
            if stop.is_set() or args.address is not None:  # else it ends with its Ray
                _stop_serve(recipe.deadlines.drain_s)
    except (RuntimeError, ValueError) as error:  # Serve's for a deployment that did not come up, or may not
        raise CascadeError(f"the server did not start: {error}") from error
    finally:
        if owns_ray:
            ray.shutdown()
    return 0


def _start_serve(host: str, port: int, tls: dict[str, str]) -> None:
    """Serve at this address. Raises `ConfigError` where the Ray that was joined has one already that is in the way."""
    from ray import serve
    from ray.serve import context

    if APPLICATION in serve.status().applications:
        raise ConfigError("--address", APPLICATION, "a Ray on which no application of this name runs")
    http = {"host": host, "port": port, **tls}
    serve.start(http_options=http, logging_config={"enable_access_log": False, "log_level": "WARNING"})
    client: Any = context._get_global_client()
    there = client.http_config
    if (there.host, there.port, there.ssl_certfile) != (host, port, tls.get("ssl_certfile")):
        allowed = f"{there.host}:{there.port}{' with its TLS' * bool(there.ssl_certfile)}, where Serve listens already"
        raise ConfigError("--port", f"{host}:{port}", allowed)


def _stop_serve(drain_s: float) -> None:
    """Drain and stop the application; Serve, too, where nobody else has one on it. Serve's own way to stop it answers
    who is inside, but who comes meanwhile hears 404 instead of when to come back.
    """
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    end = time.monotonic() + drain_s
    with contextlib.suppress(RayServeException, RayError, TimeoutError):  # it never came up, or does not answer
        handle: Any = serve.get_app_handle(APPLICATION)
        while any(handle.broadcast("drain").results(timeout_s=_DRAIN_CALL_S)) and time.monotonic() < end:
            time.sleep(_DRAIN_LOOK_S)
    serve.delete(APPLICATION)
    if not serve.status().applications:
        serve.shutdown()


def _check_tls(certificate: Path | None, key: Path | None) -> None:
    """What is wrong with them is found out before anything is started. Raises `ConfigError`."""
    if certificate is None and key is None:
        return
    if certificate is None or key is None:
        raise ConfigError("--tls-key", None if key is None else str(key), "a file, together with --tls-cert")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: b"")
    except (OSError, ValueError) as error:
        given = f"{certificate} and {key}"
        raise ConfigError("--tls-cert", given, f"a certificate and its key, without password ({error})") from error


def _check_free(host: str, port: int, option: str) -> None:
    """Replicas share their gRPC port, and so would another server that has it already: that is found out here."""
    if not port:
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host.strip("[]"), port), family=family).close()
    except OSError as error:
        raise ConfigError(option, port, f"a port that is free on {host} ({error.strerror})") from error
