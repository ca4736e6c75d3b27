"""The gRPC server of the tests that look at it from the wire, in front of a scripted cascade."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from client.grpc_servers import Served, grpc_server
from client.scripted import Scripted

from cascade_runtime.config import Recipe, load_recipe


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe("light_heavy", ["cascade.slots=2"])


@pytest.fixture(scope="module")
def server(recipe: Recipe) -> Iterator[Served]:
    with grpc_server(recipe, Scripted(), max_body_bytes=200_000, max_tokens=50) as served:
        yield served
