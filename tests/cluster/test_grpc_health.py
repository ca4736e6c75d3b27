"""What any gRPC tool may ask the server: reflection, and the health of the pipeline."""

from __future__ import annotations

import grpc
from client.grpc_servers import Served, grpc_server
from client.scripted import Scripted
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_calls import asked, health, reflected, refused
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cascade_runtime.config import Recipe
from cascade_runtime.proto import cascade_pb2 as wire
from cascade_runtime.proto.cascade_pb2_grpc import CascadeStub


def test_reflection_lists_the_service_and_gives_its_file(server: Served) -> None:
    with grpc.insecure_channel(server.address) as channel:
        listed = reflected(channel, list_services="").list_services_response.service
        assert {one.name for one in listed} == {
            "cascade.v1.Cascade",
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }
        (data,) = reflected(
            channel, file_containing_symbol="cascade.v1.Cascade"
        ).file_descriptor_response.file_descriptor_proto
        (service,) = FileDescriptorProto.FromString(data).service
        assert {"Generate", "GenerateStream", "Session", "Cancel"} <= {method.name for method in service.method}


def test_health_is_the_pipeline_s(recipe: Recipe) -> None:
    with grpc_server(recipe, Scripted()) as served, grpc.insecure_channel(served.address) as channel:
        stub = CascadeStub(channel)
        assert health(channel) == health(channel, "cascade.v1.Cascade") == "SERVING"
        assert refused(lambda: health(channel, "another"))[0] == "NOT_FOUND"
        assert stub.Models(wire.ModelsRequest()).models[0].levels == ["light", "heavy"]
        served.silent = ("light",)
        assert stub.Health(wire.HealthRequest()) == wire.Readiness(ready=True, status="ok", without=["light"])
        served.silent = ("heavy",)
        assert (health(channel), stub.Health(wire.HealthRequest()).status) == ("NOT_SERVING", "silent or dead: heavy")
        served.silent = ()
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()
        served.gateway.draining = True
        assert health(channel) == "NOT_SERVING"
        assert refused(lambda: stub.Generate(asked()))[1]["retry-after"] == "1"
