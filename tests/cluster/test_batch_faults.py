"""A server's batches on a disk that fills up, and under a clock that jumps."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from chat_bodies import body_about, chat_body
from client.http_servers import cascade_server
from full_disk import files_up_to
from toy_family import toy_events, toy_recipe, write_toy_family

from cascade_runtime.errors import CapacityError
from cluster.serving.batches.lines import Lines

URL = "/v1/chat/completions"
ROWS = 8


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    recipe = toy_recipe(write_toy_family(tmp_path_factory.mktemp("toy")), [])
    folder = str(tmp_path_factory.mktemp("files"))
    with cascade_server(recipe, files_dir=folder) as (address, _), httpx.Client(base_url=address, timeout=60) as client:
        yield client


def begun(client: httpx.Client, max_tokens: int) -> str:
    """A batch of short rows about one upload."""

    def left(name: str, content: bytes, purpose: str) -> str:
        return client.post("/v1/files", files={"file": (name, content)}, data={"purpose": purpose}).json()["id"]

    recording = left("drive.arrow", toy_events().to_ipc_bytes(), "user_data")
    body = body_about(recording, max_tokens=max_tokens, ignore_eos=True)
    rows = [{"custom_id": f"q{k}", "method": "POST", "url": URL, "body": body} for k in range(ROWS)]
    source = left("in.jsonl", "\n".join(map(json.dumps, rows)).encode(), "batch")
    asked = {"input_file_id": source, "endpoint": URL, "completion_window": "24h"}
    return client.post("/v1/batches", json=asked).json()["id"]


def ended(client: httpx.Client, name: str) -> dict[str, Any]:
    end = time.monotonic() + 60
    while (told := client.get(f"/v1/batches/{name}").json())["status"] not in ("completed", "failed", "expired"):
        assert time.monotonic() < end, told
        time.sleep(0.02)
    return told


def test_a_full_disk_ends_a_batch_with_the_rows_it_has_and_nothing_else(client: httpx.Client) -> None:
    whole = ended(client, begun(client, 3))
    assert whole["status"] == "completed"
    size = len(client.get(f"/v1/files/{whole['output_file_id']}/content").content)
    name = begun(client, 3)
    with files_up_to(size * 5 // (2 * ROWS)):  # room for two rows and a half
        told = ended(client, name)
    assert (told["status"], told["errors"]["data"][0]["code"]) == ("failed", "storage_failed")
    assert told["request_counts"] == {"total": ROWS, "completed": 2, "failed": 0}
    text = client.get(f"/v1/files/{told['output_file_id']}/content").text
    assert text.endswith("\n") and len({json.loads(line)["custom_id"] for line in text.splitlines()}) == 2
    assert client.post(URL, json=chat_body(max_tokens=2)).status_code == 200
    assert ended(client, begun(client, 3))["request_counts"]["completed"] == ROWS  # there is room again


def test_a_clock_that_jumps_by_days_ends_no_batch(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    name = begun(client, 60)
    real = time.time
    while not client.get(f"/v1/batches/{name}").json()["request_counts"]["completed"]:
        time.sleep(0.01)
    monkeypatch.setattr("cluster.serving.batches.run.time.time", lambda: real() + 2 * 86_400)
    told = ended(client, name)
    assert (told["status"], told["request_counts"]["completed"]) == ("completed", ROWS)


def test_lines_are_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"one\nha")
    lines = Lines(path)
    assert list(lines) == [b"one\n"]
    with files_up_to(10):
        lines.add(b"two")
        with pytest.raises(CapacityError):
            lines.add(b"no room for this one")
        assert path.read_bytes() == b"one\ntwo\n"
    lines.add(b"three")
    lines.close()
    lines.close()
    assert list(Lines(path)) == [b"one\n", b"two\n", b"three\n"]
