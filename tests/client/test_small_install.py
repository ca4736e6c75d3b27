"""A client of a server elsewhere needs what pyproject's group `client` names, and nothing of Ray, torch or a server."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from client.grpc_servers import grpc_server
from client.http_servers import scripted_server
from client.scripted import Scripted
from client.test_http_faults import GOOD, sends

from cascade_runtime.config import load_recipe

ROOT = Path(__file__).parents[2]
ASK = """
import sys
from importlib.abc import MetaPathFinder

allowed = set(sys.argv[2].split()) | set(sys.stdlib_module_names) | {"cascade_runtime"}

class Small(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in allowed:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Small())
from cascade_runtime.client import CascadeClient
from cascade_runtime.errors import ConfigError

with CascadeClient(sys.argv[1]) as client:
    answer = client.generate({"t": [0, 5], "x": [1, 2], "y": [1, 2], "p": [0, 1]}, "What?")
    print(answer.text, answer.produced_by, len(answer._repr_html_()) > 100)
try:
    CascadeClient()
except ConfigError as error:
    print(error)
"""
# what pip brings with them
IMPORTED_AS = ["grpc", "google"]  # grpcio, protobuf
BROUGHT = ["httpcore2", "h11", "anyio", "idna", "truststore", "typing_extensions"]


@pytest.mark.parametrize("by", ["http", "grpc"])
def test_the_client_works_where_only_its_own_few_packages_are(by: str) -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())
    names = [line.partition(">")[0] for line in groups["dependency-groups"]["client"]] + IMPORTED_AS
    assert set(groups["dependency-groups"]["client"]) <= set(groups["project"]["dependencies"])
    over_grpc = by == "grpc"
    door: Any = grpc_server(load_recipe("light_heavy"), Scripted()) if over_grpc else scripted_server(sends(GOOD))
    with door as served:
        address = f"grpc://{served.address}" if over_grpc else served
        done = subprocess.run(
            [sys.executable, "-c", ASK, address, " ".join([*names, *BROUGHT])],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 0, done.stderr
    answer, refusal = done.stdout.splitlines()
    assert answer == ("ab" if over_grpc else "a car") + " ('light', 'heavy') True"
    assert "in-process" in refusal and "an address only, in an installation without torch" in refusal
