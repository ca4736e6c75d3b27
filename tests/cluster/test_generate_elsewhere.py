"""`cascade generate --target`: the same question at a server's address; a Ray that is not there; a recipe too many."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from client.http_servers import cascade_server
from toy_family import toy_events, toy_recipe, write_toy_family

from cascade_runtime.api import GenerateRequest
from cascade_runtime.config import SamplingParams
from cascade_runtime.events import write_events
from cluster import cli

ROOT = Path(__file__).parents[2]


@pytest.fixture
def recording(tmp_path: Path) -> str:
    write_events(tmp_path / "a.npz", toy_events())
    return str(tmp_path / "a.npz")


def test_a_server_is_asked_by_its_address(
    recording: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CASCADE_API_KEY", raising=False)
    with cascade_server(toy_recipe(write_toy_family(tmp_path / "toy"), ["noisy"])) as (address, transport):
        options = ["generate", recording, "-q", "What moves?", "--target", address, "--max-tokens", "9", "--json"]
        assert cli.main(options) == cli.OK
        told = json.loads(capsys.readouterr().out)
        (want,) = transport.engine.generate(
            [GenerateRequest(events=toy_events(), question="What moves?", sampling=SamplingParams(max_tokens=9))]
        )
        assert told["token_ids"] == list(want.token_ids) and told["levels"] == ["level0", "target"]  # type: ignore[union-attr]
        assert cli.main([*options, "--recipe", "heavy"]) == cli.USAGE
        assert "none for a server" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nobody-has-this-name.invalid:6379", "127.0.0.1:x"])
def test_a_ray_that_is_not_there_is_refused_at_once(address: str) -> None:
    code = f"from cascade_runtime import CascadeClient; CascadeClient('ray://{address}', recipe='heavy')"
    # in a process of its own: this one may be connected to the cluster of other tests
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert re.search(r"ConfigError: address: .*HOST:PORT of a running cluster's head", done.stderr), done.stderr
