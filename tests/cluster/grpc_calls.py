"""Calls of the gRPC server as tests make them: raw messages out; status, trailers and text of a refusal back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from client.grpc_servers import Served
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from toy_family import toy_events

from cascade_runtime.proto import cascade_pb2 as wire
from cascade_runtime.proto.cascade_pb2_grpc import CascadeStub

KEY = "the-key-of-the-only-caller"
BEARER = (("authorization", f"Bearer {KEY}"),)
EVENTS = toy_events()
GENERATE = "/cascade.v1.Cascade/Generate"


@contextmanager
def calls(served: Served) -> Iterator[CascadeStub]:
    with grpc.insecure_channel(served.address) as channel:
        yield CascadeStub(channel)


def asked(**fields: Any) -> wire.GenerateRequest:
    given = {"question": "What moves?", "recording": {"data": EVENTS.to_ipc_bytes()}, **fields}
    given["sampling"] = {"max_tokens": 5, **fields.get("sampling", {})}
    return wire.GenerateRequest(**given)


def refused(call: Callable[[], Any]) -> tuple[str, dict[str, str], str]:
    """The status, the trailers without their prefix, and the text."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error: Any = caught.value
    trailers = {key.removeprefix("cascade-error-"): value for key, value in error.trailing_metadata() or ()}
    return error.code().name, trailers, error.details()


def reflected(channel: grpc.Channel, **request: str) -> Any:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    return next(stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(**request)])))


def health(channel: grpc.Channel, service: str = "") -> str:
    reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
    return health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
