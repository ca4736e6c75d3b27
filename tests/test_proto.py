"""The generated gRPC code is what its `.proto` files say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROTO = Path("cascade_runtime/proto")
FILES = sorted(path.name for path in (ROOT / PROTO).glob("*.proto"))


@pytest.mark.parametrize("name", FILES)
def test_generated_code_is_what_its_proto_file_says(name: str, tmp_path: Path) -> None:
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", *outputs, str(PROTO / name)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120)
    made = sorted((tmp_path / PROTO).iterdir())
    assert len(made) >= 2
    for path in made:
        assert path.read_text() == (ROOT / PROTO / path.name).read_text(), f"{path.name} is not what {name} says"
