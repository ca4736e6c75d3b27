"""A Ray that asks for no token: not started, and named where it is joined."""

from __future__ import annotations

import pytest
import ray

from cascade_runtime.errors import ConfigError
from cluster import ray_transport
from cluster.ray_auth import refuse_open_ray, tell_open_ray


def test_a_ray_without_a_token_is_not_started_and_one_that_is_joined_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(ConfigError) as caught:
        refuse_open_ray()
    assert caught.value.field == "RAY_AUTH_MODE"
    tell_open_ray("10.0.0.7:6379", said.append)
    assert len(said) == 1 and "10.0.0.7:6379 asks for no token" in said[0]
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    refuse_open_ray()
    tell_open_ray("10.0.0.7:6379", said.append)
    monkeypatch.delenv("RAY_AUTH_MODE")
    refuse_open_ray()
    assert len(said) == 1


@pytest.mark.parametrize(("mode", "told"), [("token", False), ("", True)])
def test_a_client_that_joins_one_is_told(
    mode: str, told: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: None)
    assert ray_transport.join("auto")
    assert ("asks for no token" in caplog.text) == told
