"""/v1/files: what a caller leaves with a server, and /v1/batches: what is asked of it when nobody waits."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx2 as httpx
import jsonschema
import pytest
from chat_bodies import body_about, chat_body
from client.http_servers import cascade_server
from toy_family import toy_events, toy_recipe, write_toy_family

from cascade_runtime.errors import CapacityError, InputError
from cluster.serving.admission import PATIENT, Admission
from cluster.serving.api_keys import digest
from cluster.serving.batches.batch import Batch
from cluster.serving.batches.rows import check
from cluster.serving.batches.shelf import BatchShelf
from cluster.serving.files.store import FileStore, StoredFile

KEYS = ("key-of-the-first-caller", "key-of-the-second-caller")
URL = "/v1/chat/completions"
DAY_S = 86_400


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_family(tmp_path_factory.mktemp("toy"))


def opened(family: Path, **settings: Any) -> AbstractContextManager[Any]:
    return cascade_server(toy_recipe(family, []), max_body_bytes=2_000_000, **settings)


@pytest.fixture(scope="module")
def site(family: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, Path]]:
    folder = tmp_path_factory.mktemp("files") / "kept"
    settings = {"key_digests": tuple(map(digest, KEYS)), "files_dir": str(folder), "max_file_bytes": 400_000}
    headers = {"Authorization": f"Bearer {KEYS[0]}"}
    with (
        opened(family, **settings) as (address, _),
        httpx.Client(base_url=address, timeout=60, headers=headers) as client,
    ):
        yield client, folder


def upload(client: httpx.Client, content: bytes, name: str = "a.jsonl", purpose: str = "batch", **more: str) -> Any:
    return client.post("/v1/files", files={"file": (name, content)}, data={"purpose": purpose, **more})


def line(name: str, **body: Any) -> dict[str, Any]:
    return {"custom_id": name, "method": "POST", "url": URL, "body": body}


def batch_of(client: httpx.Client, lines: list[dict[str, Any]]) -> dict[str, Any]:
    content = "\n".join(map(json.dumps, lines)).encode()
    source = upload(client, content).json()["id"]
    body = {"input_file_id": source, "endpoint": URL, "completion_window": "24h", "metadata": {"who": "me"}}
    return client.post("/v1/batches", json=body).json()


def ended(client: httpx.Client, id: str) -> dict[str, Any]:
    end = time.monotonic() + 60
    while (told := client.get(f"/v1/batches/{id}").json())["status"] not in ("completed", "failed", "cancelled"):
        assert time.monotonic() < end, told
        time.sleep(0.05)
    return told


def lines_of(client: httpx.Client, id: str) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in client.get(f"/v1/files/{id}/content").text.splitlines()]
    told = {line["custom_id"]: line for line in lines}
    assert len(told) == len(lines)  # none twice
    return told


# -- files -----------------------------------------------------------------------------------------------------------


def test_a_file_is_told_read_and_deleted_by_its_owner_only(site: tuple[httpx.Client, Path]) -> None:
    client, folder = site
    name = "../../etc/passwd\n.jsonl"
    told = upload(
        client, b"some lines\n", name, **{"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    )
    told = told.json()
    assert told | {"object": "file", "bytes": 11, "purpose": "batch", "status": "processed"} == told
    assert told["expires_at"] - told["created_at"] == 3600
    assert told["filename"].startswith("../../etc/passwd") or told["filename"] == "passwd?.jsonl"
    assert client.get(f"/v1/files/{told['id']}").json() == told
    content = client.get(f"/v1/files/{told['id']}/content")
    assert content.content == b"some lines\n" and content.headers["content-disposition"].startswith("attachment")
    assert told["id"] in [file["id"] for file in client.get("/v1/files").json()["data"]]
    stranger = {"Authorization": f"Bearer {KEYS[1]}"}
    assert client.get("/v1/files", headers=stranger).json()["data"] == []
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        assert client.request(method, f"/v1/files/{told['id']}{path}", headers=stranger).status_code == 404
    assert {path.name for path in folder.iterdir()} >= {told["id"], f"{told['id']}.json", "batches"}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert client.delete(f"/v1/files/{told['id']}").json() == {"id": told["id"], "object": "file", "deleted": True}
    assert client.get(f"/v1/files/{told['id']}").status_code == 404 and not (folder / told["id"]).exists()
    for outside in ("/v1/files/..", "/v1/files/%2e%2e%2fsecret/content", "/v1/files/file-0/content"):
        assert client.get(outside).status_code == 404


def test_files_are_listed_in_pages(site: tuple[httpx.Client, Path]) -> None:
    client, _ = site
    ids = [upload(client, b"x", purpose="vision").json()["id"] for _ in range(3)]
    first = client.get("/v1/files", params={"limit": 2, "purpose": "vision"}).json()
    assert len(first["data"]) == 2 and first["has_more"] and first["last_id"] == first["data"][-1]["id"]
    rest = client.get("/v1/files", params={"after": first["last_id"], "purpose": "vision"}).json()
    assert {file["id"] for file in first["data"] + rest["data"]} == set(ids) and not rest["has_more"]
    assert client.get("/v1/files", params={"order": "asc", "purpose": "vision"}).json()["last_id"] == first["first_id"]
    for wrong in ({"limit": "0"}, {"limit": "many"}, {"order": "up"}, {"after": "file-0"}):
        assert client.get("/v1/files", params=wrong).status_code == 400


def test_what_is_no_upload_is_refused_and_nothing_of_it_stays(site: tuple[httpx.Client, Path]) -> None:
    client, folder = site
    before = sorted(path.name for path in folder.iterdir())
    answers = [
        (upload(client, b""), 400),
        (upload(client, b"x", purpose="fine-tune"), 400),
        (upload(client, b"x", other="field"), 400),
        (upload(client, b"x", **{"expires_after[anchor]": "created_at", "expires_after[seconds]": "1"}), 400),
        (upload(client, b"x" * 400_001), 400),  # the form's frame has room, the file not
        (upload(client, b"x" * 500_000), 413),
        (client.post("/v1/files", data={"purpose": "batch"}), 415),
        (client.post("/v1/files", data={"purpose": "batch", "file": "x"}, files={"f": b"y"}), 400),
        (client.post("/v1/files", content=b"--x", headers={"Content-Type": "multipart/form-data"}), 400),
        (
            client.post(
                "/v1/files", content=b"--x\r\n\r\n", headers={"Content-Type": "multipart/form-data; boundary=x"}
            ),
            400,
        ),
        (client.post("/v1/files", files={"file": b"x"}, headers={"Origin": "http://evil.example"}), 403),
    ]
    for answer, status in answers:
        assert answer.status_code == status and "Traceback" not in answer.json()["error"]["message"], answer.text
    many = (b"x" * 50_000 for _ in range(20))  # without a length
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    assert client.post("/v1/files", content=many, headers=kind).status_code in (400, 413)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_recording_is_asked_about_by_its_id(site: tuple[httpx.Client, Path]) -> None:
    client, _ = site
    inline = client.post(URL, json=chat_body(max_tokens=5)).json()
    kept = upload(client, toy_events().to_ipc_bytes(), "drive.arrow", "user_data").json()["id"]

    def ask(id: str, **headers: str) -> Any:
        return client.post(URL, json=body_about(id, max_tokens=5), headers=headers)

    assert ask(kept).json()["cascade"]["token_ids"] == inline["cascade"]["token_ids"]
    for refused in (
        ask("file-" + "0" * 24),
        ask("../x"),
        ask(upload(client, b"x").json()["id"]),  # a batch's input is no recording
        ask(kept, Authorization=f"Bearer {KEYS[1]}"),
    ):
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "messages[0].content[0].file.file_id"


def test_a_store_is_bounded_in_bytes_number_and_age(tmp_path: Path) -> None:
    now = [1000.0]
    store = FileStore(tmp_path / "s", max_file_bytes=60, max_bytes=100, max_age_s=DAY_S, clock=lambda: now[0])

    def add(size: int, owner: str = "a") -> StoredFile:
        return store.add(io.BytesIO(b"x" * size), owner=owner, name="n", purpose="batch")

    first = add(60)
    with pytest.raises(InputError, match="at most 60 bytes"):
        add(61)
    with pytest.raises(CapacityError, match="100 bytes may be stored"):
        add(41)
    add(40)
    with pytest.raises(CapacityError):
        add(1, "b")
    assert store.used_bytes() == 100 and store.find("b", first.id) is None
    now[0] += DAY_S
    assert store.find("a", first.id) is None and store.of("a") == []
    add(60)  # what was too old is gone
    assert store.used_bytes() == 60
    half = store.path(store.new_id())
    half.write_bytes(b"of a process that died")
    now[0] = time.time() + 10 * DAY_S
    store.sweep()
    assert not half.exists() and store.used_bytes() == 0


# -- batches ---------------------------------------------------------------------------------------------------------


def test_a_batch_answers_every_row_once_and_tells_which_failed(site: tuple[httpx.Client, Path]) -> None:
    client, _ = site
    want = client.post(URL, json=chat_body(max_tokens=5)).json()
    lines = [line(f"q{number}", **chat_body(max_tokens=5)) for number in range(6)]
    batch = batch_of(client, [*lines, line("bad", **chat_body(model="gpt-4"))])
    assert (batch["object"], batch["status"], batch["endpoint"]) == ("batch", "validating", URL)
    assert batch["expires_at"] - batch["created_at"] == DAY_S and batch["metadata"] == {"who": "me"}
    told = ended(client, batch["id"])
    assert (told["status"], told["request_counts"]) == ("completed", {"total": 7, "completed": 6, "failed": 1})
    assert told["in_progress_at"] and told["finalizing_at"] and told["completed_at"] and not told["errors"]
    answers = lines_of(client, told["output_file_id"])
    assert set(answers) == {f"q{number}" for number in range(6)}
    for answer in answers.values():
        assert answer["response"]["status_code"] == 200 and answer["error"] is None
        assert answer["response"]["body"]["cascade"]["token_ids"] == want["cascade"]["token_ids"]
    (failed,) = lines_of(client, told["error_file_id"]).values()
    assert failed["custom_id"] == "bad" and failed["response"]["status_code"] == 404
    assert failed["response"]["body"]["error"]["code"] == "model_not_found"
    assert client.get(f"/v1/files/{told['output_file_id']}").json()["purpose"] == "batch_output"
    assert told in client.get("/v1/batches").json()["data"]
    stranger = {"Authorization": f"Bearer {KEYS[1]}"}
    assert client.get(f"/v1/batches/{batch['id']}", headers=stranger).status_code == 404
    assert client.post(f"/v1/batches/{batch['id']}/cancel").status_code == 409


def test_a_batch_can_be_cancelled_and_keeps_what_it_has(site: tuple[httpx.Client, Path]) -> None:
    client, _ = site
    kept = upload(client, toy_events().to_ipc_bytes(), "drive.arrow", "user_data").json()["id"]
    long = body_about(kept, max_tokens=200, ignore_eos=True)
    rows = [line("short", **long | {"max_tokens": 1}), *(line(f"q{number}", **long) for number in range(30))]
    batch = batch_of(client, rows)
    while not client.get(f"/v1/batches/{batch['id']}").json()["request_counts"]["completed"]:
        time.sleep(0.02)
    assert client.post(f"/v1/batches/{batch['id']}/cancel").json()["status"] == "cancelling"
    told = ended(client, batch["id"])
    counts = told["request_counts"]
    assert told["status"] == "cancelled" and 1 <= counts["completed"] < counts["total"] == 31
    assert len(lines_of(client, told["output_file_id"])) == counts["completed"]
    assert client.post(URL, json=chat_body(max_tokens=2)).status_code == 200  # every slot is free again


def test_a_batch_that_cannot_be_meant_is_refused(site: tuple[httpx.Client, Path]) -> None:
    client, _ = site
    source, recording = upload(client, b"{}").json()["id"], upload(client, b"x", purpose="vision").json()["id"]
    good = {"input_file_id": source, "endpoint": URL, "completion_window": "24h"}
    for wrong in (
        {"input_file_id": recording},
        {"input_file_id": "file-0"},
        {"input_file_id": 3},
        {"endpoint": "/v1/embeddings"},
        {"completion_window": "1h"},
        {"metadata": {"a": 1}},
        {"webhook": "http://127.0.0.1/"},
    ):
        answer = client.post("/v1/batches", json=good | wrong)
        assert answer.status_code == 400 and answer.json()["error"]["param"].startswith(next(iter(wrong)))
    told = ended(client, client.post("/v1/batches", json=good).json()["id"])
    assert told["status"] == "failed" and told["errors"]["data"][0]["line"] == 1


def test_lines_are_checked_before_anything_is_asked() -> None:
    good = json.dumps(line("a"))
    lines = [good, "", "{", good, json.dumps(line("b") | {"url": "/v1/x"}), json.dumps(line("c", stream=True)), "[]"]
    lines += [json.dumps(line("d") | {"method": "GET"}), json.dumps(line("")), "x" * 200]
    rows, wrong = check(io.BytesIO("\n".join(lines).encode()), 150)
    assert rows == 9  # the blank one does not count
    assert [(bad.number, bad.code) for bad in wrong] == [
        (3, "invalid_json_line"),
        (4, "duplicate_custom_id"),
        (5, "invalid_url"),
        (6, "invalid_value"),
        (7, "invalid_line"),
        (8, "invalid_method"),
        (9, "invalid_value"),
        (10, "line_too_long"),
    ]
    assert check(io.BytesIO(b"\n"), 100)[1][0].code == "empty_file"


def test_a_batch_goes_on_where_a_process_was_stopped(family: Path, tmp_path: Path) -> None:
    """As it is left by a process that died: one answer written, half of another, a cancelled batch not ended yet."""
    store = FileStore(tmp_path, max_file_bytes=2**20, max_bytes=2**30, max_age_s=DAY_S)
    shelf = BatchShelf(tmp_path / "batches")
    rows = "\n".join(json.dumps(line(name, **chat_body(max_tokens=3))) for name in "abc")
    source = store.add(io.BytesIO(rows.encode()), owner="-", name="in", purpose="batch")

    def left(**facts: Any) -> Batch:
        ids = {"id": shelf.new_id(), "output": store.new_id(), "error": store.new_id(), "input_file_id": source.id}
        batch = Batch(
            **{**ids, "owner": "-", "created": int(time.time()), "status": "in_progress", "total": 3, **facts}
        )
        shelf.save(batch)
        return batch

    going, cancelled, lost = left(), left(), left(input_file_id=store.new_id())
    store.path(going.output).write_text('{"custom_id": "b", "response": "the one before"}\n{"custom_id": "c", "resp')
    shelf.ask_to_end(cancelled.id)
    with opened(family, files_dir=str(tmp_path)) as (address, _), httpx.Client(base_url=address, timeout=60) as client:
        told = ended(client, going.id)
        assert told["request_counts"] == {"total": 3, "completed": 3, "failed": 0}
        answers = lines_of(client, told["output_file_id"])
        assert set(answers) == set("abc") and answers["b"]["response"] == "the one before"
        assert ended(client, cancelled.id)["status"] == "cancelled"
        assert ended(client, lost.id)["errors"]["data"][0]["code"] == "file_not_found"


def test_two_replicas_do_not_run_one_batch(tmp_path: Path) -> None:
    shelf, other = BatchShelf(tmp_path), BatchShelf(tmp_path)
    batch = Batch(id=shelf.new_id(), owner="a", input_file_id="f", created=1, output="o", error="e")
    shelf.save(batch)
    assert asdict(next(other.all())) == asdict(batch)
    with shelf.taken(batch.id) as first, other.taken(batch.id) as second:
        assert (first, second) == (True, False)
    with other.taken(batch.id) as later:
        assert later


def test_work_that_can_wait_leaves_a_slot_and_never_goes_before_a_caller(family: Path) -> None:
    admission = Admission(room=6)
    assert admission.enter_patient(2) and admission.enter_patient(2) and not admission.enter_patient(2)
    admission.enter("a", 0.0)
    admission.leave(PATIENT)
    assert not admission.enter_patient(2)  # a caller and one of its own
    admission.leave("a")
    assert admission.enter_patient(2)

    async def wakes() -> None:
        from cluster.serving.gateway import Gateway
        from cluster.serving.settings import ServerSettings

        gateway = Gateway(ServerSettings(), toy_recipe(family, []), None)  # type: ignore[arg-type]
        places = [gateway.enter("a") for _ in range(4)]  # all slots
        waiting = asyncio.create_task(gateway.enter_patiently("a"))
        places.pop().leave()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not waiting.done()  # one slot stays for those who cannot wait
        places.pop().leave()
        (await waiting).leave()

    asyncio.run(wakes())


def test_the_openapi_document_describes_files_and_batches_and_their_answers(
    site: tuple[httpx.Client, Path],
) -> None:
    client, _ = site
    document = client.get("/openapi.json").json()
    for path in ("/v1/files", "/v1/files/{id}", "/v1/files/{id}/content", "/v1/batches", "/v1/batches/{id}/cancel"):
        assert path in document["paths"]
    part = document["components"]["schemas"]["FramesRequest"]["properties"]["recording"]
    assert ["file_id"] in [way["required"] for way in part["oneOf"]] and "file_id" in part["properties"]
    stored = upload(client, json.dumps(line("a", **chat_body())).encode())
    batch = client.post(
        "/v1/batches",
        json={"input_file_id": stored.json()["id"], "endpoint": URL, "completion_window": "24h"},
    )
    told = {"File": stored, "Files": client.get("/v1/files"), "Batch": batch, "Batches": client.get("/v1/batches")}
    for name, answer in told.items():
        schema = {"$ref": f"#/components/schemas/{name}", **document}
        jsonschema.Draft202012Validator(schema).validate(answer.json())
