"""With several replicas a gRPC connection ends after a while and is made anew, and no call notices."""

from __future__ import annotations

import time

import grpc
import pytest
from client.grpc_servers import grpc_server
from client.scripted import Scripted
from toy_family import toy_events

from cascade_runtime.config import load_recipe
from cascade_runtime.proto import cascade_pb2 as wire
from cascade_runtime.proto.cascade_pb2_grpc import CascadeStub
from cluster.serving.rpc import server as rpc_server


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_connection_to_one_of_several_ends_and_calls_go_on(monkeypatch: pytest.MonkeyPatch, replicas: int) -> None:
    monkeypatch.setattr(rpc_server, "_AGE_MS", 200)
    transport = Scripted()
    states: list[grpc.ChannelConnectivity] = []
    question = wire.GenerateRequest(question="What moves?", recording={"data": toy_events().to_ipc_bytes()})  # type: ignore[arg-type]
    with (
        grpc_server(load_recipe("light_heavy"), transport, replicas=replicas) as served,
        grpc.insecure_channel(served.address) as channel,
    ):
        channel.subscribe(states.append, try_to_connect=True)
        stub = CascadeStub(channel)
        transport.go.clear()
        updates = stub.GenerateStream(question)  # is inside when the connection's time is over
        assert next(updates).WhichOneof("update") == "opening"
        end = time.monotonic() + (20 if replicas > 1 else 0.6)
        while states.count(grpc.ChannelConnectivity.READY) < 2 and time.monotonic() < end:
            assert stub.Health(wire.HealthRequest()).ready
        transport.go.set()
        assert [update.WhichOneof("update") for update in updates][-1] == "answer"
        assert stub.Generate(question).text == "ab"
    assert (states.count(grpc.ChannelConnectivity.READY) > 1) == (replicas > 1)
