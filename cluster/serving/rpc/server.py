"""`GrpcServer`: the port, its TLS and its limits."""

from __future__ import annotations

import ssl
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cascade_runtime.errors import ConfigError
from cascade_runtime.proto.cascade_pb2 import DESCRIPTOR
from cascade_runtime.proto.cascade_pb2_grpc import add_CascadeServicer_to_server
from cluster.serving.gateway import Gateway
from cluster.serving.readiness import Vitals
from cluster.serving.routes import Elsewhere
from cluster.serving.rpc.door import Door
from cluster.serving.rpc.health import HealthService
from cluster.serving.rpc.service import CascadeService

SERVICE = DESCRIPTOR.services_by_name["Cascade"].full_name
_SPARE = 64  # calls beyond sessions and the queue: health, cancels, and refusals under way
_AGE_MS = 60_000  # of a connection, where there are several replicas: its client then meets another one, perhaps


class GrpcServer:
    """One replica's. Raises `ConfigError` for an address that needs a key, or certificates that cannot be used."""

    def __init__(self, gateway: Gateway, vitals: Vitals, elsewhere: Elsewhere) -> None:
        settings = gateway.settings
        settings.check_address(settings.grpc_host)
        room = gateway.recipe.cascade.slots + settings.max_queue
        age = (("grpc.max_connection_age_ms", _AGE_MS),) if settings.replicas > 1 else ()  # calls inside go on
        self._server = grpc.aio.server(
            interceptors=[Door(gateway)],
            maximum_concurrent_rpcs=2 * room + _SPARE,
            options=(
                ("grpc.max_receive_message_length", settings.max_body_bytes),
                ("grpc.so_reuseport", 1),  # replicas on one machine, and one that takes over from another
                ("grpc.keepalive_time_ms", 30_000),  # a caller who has vanished is found out, and its slot freed
                ("grpc.keepalive_timeout_ms", 20_000),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 20_000),  # clients may find out the same
                *age,
            ),
        )
        add_CascadeServicer_to_server(CascadeService(gateway, vitals, elsewhere), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(HealthService(gateway, vitals, (SERVICE,)), self._server)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        host = f"[{settings.grpc_host}]" if ":" in settings.grpc_host else settings.grpc_host
        self.address = f"{host}:{settings.grpc_port}"
        try:
            if settings.grpc_certfile is None or settings.grpc_keyfile is None:
                self._server.add_insecure_port(self.address)
            else:
                self._server.add_secure_port(self.address, _credentials(settings.grpc_certfile, settings.grpc_keyfile))
        except RuntimeError as error:
            raise ConfigError("grpc_port", self.address, "an address that may be listened on") from error

    async def start(self) -> None:
        """Answer from now on."""
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """Take no more calls, and end those that run after grace_s."""
        await self._server.stop(grace_s)


def _credentials(certfile: str, keyfile: str) -> grpc.ServerCredentials:
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certfile, keyfile)
        return grpc.ssl_server_credentials([(Path(keyfile).read_bytes(), Path(certfile).read_bytes())])
    except (OSError, ValueError) as error:
        raise ConfigError("grpc_certfile", certfile, f"a certificate and its key as PEM files ({error})") from error
