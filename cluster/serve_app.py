"""The Ray Serve application: one replica is one whole pipeline, with its HTTP API in front.

    serve run cluster.serve_app:app recipe=light_heavy             arguments: the fields of `ServerSettings`
    CASCADE_RECIPE=light_heavy serve run cluster.serve_app:app
    serve deploy cascade.yaml                                      import_path: cluster.serve_app:app, args: {...}
    cascade serve light_heavy                                      the same on a Ray of its own

    client -> Serve's HTTP proxy -> replica: guard, routes, gateway -> controller actor -> stages      (see launch.py)
    client ---------- gRPC --------> replica: door, service, gateway -> ...          (see serving/rpc/__init__.py)
    another deployment -- handle --> replica: chat, chat_stream, gateway -> ...           (see serving/handle.py)

    # cascade.yaml
    http_options: {host: 127.0.0.1, port: 8000}    # Serve's default in a file is 0.0.0.0, which needs api_key_file
    applications:
      - {name: cascade, route_prefix: /, import_path: "cluster.serve_app:app", args: {recipe: light_heavy}}

The cluster must have the CPUs and GPUs that the recipe asks for (`num_cpus` of its stages, 1 each unless it says less).
Serve only starts, places, watches and stops replicas, and takes requests to them. It does not batch: the stages do. A
request whose replica dies is lost; `CascadeClient` asks again, and waits for the next one. Requests are refused by the
gateway's own bounded queue; Serve's limits lie above it, so that a full server answers in OpenAI's JSON. The nodes of a
cluster of your own must have in their environment what `cluster/serving/proxy_limits.py` says, or a stranger's endless
header ends a proxy.

A file that is deployed again with other `args` replaces the replicas, and no HTTP request fails: those inside are
answered by the old one, those that come wait in the proxy (64 of them) until the new one has loaded. gRPC calls are
refused meanwhile. Where the cluster has room for one pipeline more, an application's
`deployments: [{name: Cascade, max_surge_percent: 100}]` loads the new one first, and nobody waits.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from ray import serve
from ray.serve import context
from ray.serve.exceptions import RayServeException
from starlette.applications import Starlette

from cascade_runtime.errors import StageError
from cluster.ray_transport import RayTransport
from cluster.serving.batches.routes import batch_routes
from cluster.serving.batches.runs import BatchRuns
from cluster.serving.files.routes import file_routes
from cluster.serving.gateway import Gateway
from cluster.serving.handle import HandleDoor
from cluster.serving.health import Canary, missing, stage_stats, vision_stats
from cluster.serving.page import page_routes
from cluster.serving.routes import build_app, recall
from cluster.serving.rpc import GrpcServer
from cluster.serving.settings import ServerSettings

log = logging.getLogger(__name__)

DEPLOYMENT = "Cascade"
_SPARE = 64  # requests of a replica beyond its queue: health, metrics, cancels, and refusals under way
_PEERS_S = 5.0  # the first call finds out who they are; a replica with a silent stage knows so after two
_PATIENCE_S = 12.0


class Cascade:
    """One replica: a pipeline and everything in front of it. Public methods are called by Serve."""

    async def __init__(self, settings: ServerSettings) -> None:
        client: Any = context._get_global_client()
        settings.check_address(client.http_config.host)
        place: Any = serve.get_replica_context()
        there = 2 if place.world_size is None else place.world_size  # None where Serve scales it: any number
        settings = replace(settings, replicas=max(settings.replicas, there))
        recipe = settings.load_recipe()
        self._transport = await asyncio.to_thread(RayTransport, recipe)
        self._pipeline = self._transport.pipeline
        self._files = settings.file_store()
        self._gateway = Gateway(settings, recipe, self._transport, self._files)
        self._batches = BatchRuns(self._files, self._gateway) if self._files is not None else None
        if self._batches is not None:
            self._batches.resume()
        self._canary = Canary(self._pipeline, self._transport.run)
        self._handle = HandleDoor(self._gateway)
        self._grpc = GrpcServer(self._gateway, self, _Peers(settings.replicas)) if settings.grpc_port else None
        if self._grpc is not None:
            await self._grpc.start()

    def __serve_build_asgi_app__(self) -> Starlette:
        peers = _Peers(self._gateway.settings.replicas)
        more = [*page_routes(self._gateway)]
        if self._files is not None and self._batches is not None:
            more += [*file_routes(self._files), *batch_routes(self._batches)]
        return build_app(self._gateway, self, peers, more)

    async def check_health(self) -> None:
        """Raises `StageError` where no answer can be made any more: after three times Serve starts another replica. A
        stage that is only slow to answer has more patience here than elsewhere, and one that is being started anew is
        waited for: requests inside go on then.
        """
        gone = set(await self.gone(_PATIENCE_S)) - self._pipeline.mending
        vital = {"controller", "encoder", "adapter", self._pipeline.recipe.target.name} & gone
        if vital:
            raise StageError(min(vital), "-", "silent or dead")

    async def __del__(self) -> None:
        """Called by Serve once no request is left, or none may be waited for any longer."""
        transport = getattr(self, "_transport", None)
        if transport is not None:
            self._gateway.draining = True
            if self._files is not None and self._batches is not None:
                await self._batches.close()
                self._files.close()
            if self._grpc is not None:
                await self._grpc.stop(self._gateway.recipe.deadlines.drain_s)
            await transport.close()

    async def gone(self, wait_s: float = 2.0) -> tuple[str, ...]:
        """Stages that are silent for so long, or dead."""
        asked = stage_stats(self._pipeline, wait_s), vision_stats(self._pipeline, wait_s)
        stats, vision = await asyncio.gather(*asked)
        return missing(stats | vision)

    async def stats(self) -> dict[str, dict[str, Any]]:
        """What controller and language stages say of themselves."""
        return await stage_stats(self._pipeline)

    async def canary(self) -> dict[str, Any]:
        """One token through all stages."""
        return await self._canary.sing()

    async def chat(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """One answer, for another deployment; see `HandleDoor.chat`."""
        return await self._handle.chat(body)

    async def chat_stream(self, body: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """One answer in chunks, for another deployment; see `HandleDoor.chat_stream`."""
        async with aclosing(self._handle.chat_stream(body)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                yield chunk

    async def metrics(self) -> tuple[str, str]:
        """This replica's rank among all of them, and what it counts."""
        return str(serve.get_replica_context().rank.rank), self._gateway.counters.text(await self.stats())

    async def drain(self) -> int:
        """Refuse what comes from now on; how many requests are still inside."""
        self._gateway.draining = True
        return self._gateway.inside

    async def restart(self, *stages: str) -> list[float]:
        """Start these stages of this replica anew, one after the other, or all of them, while requests go on; how many
        seconds each took. For whoever holds the deployment's handle, not for callers of the API.
        """
        recoveries = await asyncio.to_thread(self._pipeline.restart, *stages)
        return [each.up_at - each.noticed_at for each in recoveries]

    async def recall(self, caller: str, request_id: str, what: str) -> dict[str, Any] | None:
        """What this replica knows of a request; see `cluster.serving.routes.recall`."""
        return recall(self._gateway, caller, request_id, what)

    async def cancel(self, caller: str, request_id: str) -> bool:
        """End a request of this replica; whether it was running here."""
        return self._gateway.cancel(caller, request_id)


class _Peers:
    """All replicas of this application, this one included: where a request may be known that is not known here."""

    def __init__(self, replicas: int) -> None:
        self._replicas = replicas
        self._handle: Any = None  # a `DeploymentHandle`, made when it is first needed

    async def recall(self, caller: str, request_id: str, what: str) -> dict[str, Any] | None:
        told = await self._ask("recall", caller, request_id, what)
        return next((found for found in told if isinstance(found, dict)), None)

    async def cancel(self, caller: str, request_id: str) -> bool:
        return True in await self._ask("cancel", caller, request_id)

    async def metrics(self) -> dict[str, str]:
        told = await self._ask("metrics")
        return dict(sorted(found for found in told if isinstance(found, tuple)))

    async def _ask(self, method: str, *args: str) -> list[Any]:
        if self._replicas < 2:
            return []
        if self._handle is None:
            self._handle = serve.get_deployment_handle(DEPLOYMENT, serve.get_replica_context().app_name)
        try:
            return await self._handle.broadcast(method, *args).results_async(timeout_s=_PEERS_S, return_exceptions=True)
        except (TimeoutError, RayServeException):  # Serve's where none is there, as between two deployments
            return []


def app(args: dict[str, Any]) -> serve.Application:
    """The application, as `serve run` and `serve deploy` build it. Raises `ConfigError` for unknown arguments."""
    return application(ServerSettings.from_args(args))


def application(settings: ServerSettings) -> serve.Application:
    """The application of these settings. Serve runs the replicas; a recipe that asks for several is given as many."""
    recipe = settings.load_recipe()
    settings = replace(settings, replicas=max(settings.replicas, recipe.cascade.replicas))
    stop_s = recipe.deadlines.drain_s + recipe.deadlines.control_s
    deployment: Any = serve.deployment(
        serve.ingress()(Cascade),
        name=DEPLOYMENT,
        num_replicas=settings.replicas,
        ray_actor_options={"num_cpus": 0.1},
        max_ongoing_requests=recipe.cascade.slots + settings.max_queue + _SPARE,
        max_queued_requests=_SPARE,
        health_check_period_s=5.0,
        health_check_timeout_s=15.0,
        graceful_shutdown_wait_loop_s=0.2,
        graceful_shutdown_timeout_s=stop_s,
    )
    return deployment.bind(settings)
