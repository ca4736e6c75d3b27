"""The page's server side: its files under a strict policy, samples, and pictures of what a caller sends."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from client.http_servers import cascade_server
from toy_family import toy_events, toy_recipe, write_toy_family

from cascade_runtime.events import Events
from cascade_runtime.events.picture import film

WEB = Path(__file__).parents[2] / "cluster" / "web"


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_family(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def site(family: Path) -> Iterator[httpx.Client]:
    with cascade_server(toy_recipe(family, [])) as (address, _), httpx.Client(base_url=address, timeout=60) as client:
        yield client


def recording(data: bytes, kind: str = "application/vnd.apache.arrow.stream") -> dict[str, Any]:
    return {"recording": {"url": f"data:{kind};base64,{base64.b64encode(data).decode()}"}}


def test_every_file_of_the_page_is_served_under_the_strict_policy(site: httpx.Client) -> None:
    for path in WEB.iterdir():
        answer = site.get("/" if path.name == "index.html" else f"/page/{path.name}")
        assert answer.status_code == 200 and answer.content == path.read_bytes()
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'")
        assert "unsafe" not in policy and answer.headers["x-content-type-options"] == "nosniff"
    for outside in ("/page/../page.py", "/page/%2e%2e%2fpage.py", "/page/none.js"):
        assert site.get(outside).status_code == 404


def test_the_page_needs_nothing_from_elsewhere_and_builds_no_markup_from_text() -> None:
    for path in WEB.iterdir():
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"(https?:)?//[a-z0-9-]+\.[a-z]", text), path.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text)
    page = (WEB / "index.html").read_text()
    assert not re.search(r"\son\w+=|<style|\sstyle=|<script(?! type=\"module\" src=)", page)


def test_a_sample_is_a_recording_and_its_frames_are_pictures(site: httpx.Client) -> None:
    samples = site.get("/v1/cascade/samples").json()["data"]
    assert len(samples) >= 3
    for sample in samples:
        data = site.get(f"/v1/cascade/samples/{sample['name']}").content
        events = Events.from_ipc_bytes(data)
        told = site.post("/v1/cascade/frames", json=recording(data)).json()
        assert told["facts"]["events"] == len(events) == sum(frame["events"] for frame in told["frames"])
        for frame in told["frames"]:
            png = base64.b64decode(frame["png"])
            assert png[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", png[16:24]) == (64, 64)
    assert site.get("/v1/cascade/samples/none").status_code == 404


def test_pictures_of_a_file_that_its_caller_has_uploaded(family: Path) -> None:
    keys = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("sk-mine", "sk-of-another")}
    data = toy_events().to_ipc_bytes("zstd")
    with (
        cascade_server(toy_recipe(family, []), key_digests=tuple(keys.values())) as (address, _),
        httpx.Client(base_url=address, timeout=60, headers={"Authorization": "Bearer sk-mine"}) as mine,
        httpx.Client(base_url=address, timeout=60, headers={"Authorization": "Bearer sk-of-another"}) as another,
    ):
        kept = mine.post("/v1/files", data={"purpose": "user_data"}, files={"file": ("drive.arrows", data)}).json()
        asked = {"recording": {"file_id": kept["id"]}}
        told = mine.post("/v1/cascade/frames", json=asked)
        assert told.status_code == 200 and told.json() == mine.post("/v1/cascade/frames", json=recording(data)).json()
        refused = another.post("/v1/cascade/frames", json=asked)
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "recording.file_id"


def test_frames_are_equal_times_that_miss_no_event() -> None:
    events = toy_events()
    frames = list(film(events, 7, most_columns=40))
    assert sum(frame.events for frame in frames) == len(events)
    assert [frame.end_us for frame in frames[:-1]] == [frame.start_us for frame in frames[1:]]
    assert (frames[0].start_us, frames[-1].end_us) == (int(events.t[0]), int(events.t[-1]) + 1)
    assert struct.unpack(">II", frames[0].png[16:24]) == (40, 30)
    assert len({frame.png for frame in frames}) == 7


def test_what_cannot_be_read_is_refused_and_leaves_its_place(site: httpx.Client) -> None:
    for _ in range(50):  # more than there are places
        answer = site.post("/v1/cascade/frames", json=recording(b"nonsense"))
        assert answer.status_code == 400 and answer.json()["error"]["code"] == "media_rejected"
    fetch = site.post("/v1/cascade/frames", json={"recording": {"url": "http://127.0.0.1:1/x"}})
    assert fetch.status_code == 400
    assert site.post("/v1/cascade/frames", content=b"x").status_code == 415


def test_with_keys_the_page_is_open_and_what_it_asks_for_is_not(family: Path) -> None:
    digest = hashlib.sha256(b"sk-test").hexdigest()
    with cascade_server(toy_recipe(family, []), key_digests=(digest,)) as (address, _):
        with httpx.Client(base_url=address, timeout=60) as stranger:
            assert stranger.get("/").status_code == stranger.get("/page/page.js").status_code == 200
            assert stranger.get("/v1/cascade/samples").status_code == 401
            assert stranger.post("/v1/cascade/frames", json={}).status_code == 401
        with httpx.Client(base_url=address, timeout=60, headers={"Authorization": "Bearer sk-test"}) as friend:
            assert json.loads(friend.get("/v1/cascade/samples").content)["data"]
