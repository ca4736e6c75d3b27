"""`HealthService`: gRPC's standard health protocol, said of the pipeline behind the server and not of its port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from cluster.serving.gateway import Gateway
from cluster.serving.readiness import Vitals, readiness
from cluster.serving.refusals import Refusal, not_found

_WATCH_S = 5.0


class HealthService(health_pb2_grpc.HealthServicer):
    """SERVING where /ready says "ok". Knows the whole server ("") and the services named."""

    def __init__(self, gateway: Gateway, vitals: Vitals, services: tuple[str, ...]) -> None:
        self._gateway, self._vitals, self._known = gateway, vitals, ("", *services)

    async def Check(self, request: Any, context: Any) -> Any:
        """Now. NOT_FOUND for a service that is not here."""
        if request.service not in self._known:
            raise not_found("no such service")
        return health_pb2.HealthCheckResponse(status=await self._status())

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """Now and at every change."""
        before = None
        while True:
            unknown = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            status = await self._status() if request.service in self._known else unknown
            if status != before:
                yield health_pb2.HealthCheckResponse(status=status)
            before = status
            await asyncio.sleep(_WATCH_S)

    async def _status(self) -> Any:
        try:
            await readiness(self._gateway, self._vitals)
        except Refusal:
            return health_pb2.HealthCheckResponse.NOT_SERVING
        return health_pb2.HealthCheckResponse.SERVING
