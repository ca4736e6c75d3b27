"""Where the pipeline of an edge's drafts is started: as somebody says, or not at all."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from toy_family import edge_recipe, write_toy_family

from cluster import replicated
from cluster.edge.pipeline import open_pipeline
from cluster.ray_transport import RayTransport


@pytest.mark.parametrize(
    ("target", "address"), [("ray", None), ("ray://10.0.0.1:6379", "10.0.0.1:6379"), ("RAY://auto", "auto")]
)
def test_a_relay_runs_on_the_ray_that_was_named(
    target: str, address: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []

    class Started(RayTransport):
        def __init__(self, recipe: Any, *, address: str | None = None, report: Any = None) -> None:
            asked.append(address)
            self.pipeline = SimpleNamespace(stages={"level0": "the relay", "target": "a stage"})  # type: ignore[assignment]

    monkeypatch.setattr(replicated, "RayTransport", Started)
    transport, relay = open_pipeline(target, edge_recipe(write_toy_family(tmp_path), ["identical"], {}))
    assert isinstance(transport, Started) and relay == "the relay"
    assert asked == [address]
